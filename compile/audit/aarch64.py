"""A64: integer, move and control instructions, as the Arm Architecture Reference Manual (part C) names them.

Everything on floats begins with f, with bf, or is scvtf or ucvtf there; of those only the moves are listed.
"""

from __future__ import annotations

from intcert.compile.audit.instructions import STOP, Flow, Instruction, InstructionSet, Kind, expand, last_address

_CONDITIONS = "{eq,ne,cs,hs,cc,lo,mi,pl,vs,vc,hi,ls,ge,lt,gt,le,al,nv}"

_KINDS = expand(
    {
        Kind.INTEGER: """
            {add,sub,adc,sbc,neg,ngc}{,s} {cmp,cmn,ccmp,ccmn} {mul,mneg,madd,msub,sdiv,udiv,smulh,umulh}
            {s,u}{mull,mnegl,maddl,msubl} {lsl,lsr,asr,ror,extr,cls,clz,abs} {lsl,lsr,asr,ror}v
            {s,u}xt{b,h,w} sxtl{,2} uxtl{,2} {s,u}bf{iz,x,m} {bfi,bfxil,bfc,bfm}
            {addp,addv,mla,mls,cnt} {add,sub,radd,rsub}hn{,2} {s,u}{addl,addw,subl,subw}{,2}
            {s,u}{addlp,addlv,adalp} {s,u}{hadd,rhadd,hsub} {s,u}q{add,sub} {suqadd,usqadd,sqabs,sqneg}
            {s,u}{max,min}{,p,v} {s,u}{abd,aba}{,l,l2} {s,u}{mull,mlal,mlsl}2 {s,u}{mlal,mlsl}
            sq{,r}dmulh sqrdml{a,s}h sqdm{ull,lal,lsl}{,2} {s,u}{shl,rshl,qshl,qrshl} sqshlu
            {s,u}{shr,rshr,sra,rsra} {shl,sli,sri} shll{,2} {s,u}shll{,2} xtn{,2} {s,u}qxtn{,2} sqxtun{,2}
            {,r}shrn{,2} {s,u}q{,r}shrn{,2} sq{,r}shrun{,2} cm{eq,ge,gt,hi,hs,le,lt,tst}
        """,
        Kind.DOT: "{s,u,us,su}dot {s,u,us}mmla",
        Kind.LOGIC: "{and,bic}{,s} {orr,orn,eor,eon,tst,mvn,not,bsl,bit,bif,rbit,eor3,bcax,pmul} pmull{,2}",
        Kind.MOVE: """
            mov{,z,k,n,i} mvni {adr,adrp} ld{,u}r{,b,h,sb,sh,sw} st{,u}r{,b,h} ld{,n}p ldpsw st{,n}p
            ld{1,2,3,4}{,r} st{1,2,3,4} prf{,u}m {csel,csinc,csinv,csneg,cset,csetm,cinc,cinv,cneg,umov,smov}
        """,
        Kind.SHUFFLE: "{dup,ins,ext,tbl,tbx,rev,rev16,rev32,rev64} {zip,uzp,trn}{1,2}",
        Kind.CONTROL: f"{{b,bl,br,blr,ret,cbz,cbnz,tbz,tbnz,nop,bti,hint,paciasp,autiasp,udf,brk}} b.{_CONDITIONS}",
        Kind.SYSTEM: "{dmb,dsb,isb}",
        Kind.FLOAT_MOVE: "fmov",
        Kind.FLOAT_SHUFFLE: "fcsel",
    }
)
_STOPS = frozenset({"ret", "udf", "brk"})
_BRANCHES = frozenset({"b", "bl", "cbz", "cbnz", "tbz", "tbnz"})


def _classify(instruction: Instruction) -> Kind | None:
    return _KINDS.get(instruction.mnemonic)


def _flow(instruction: Instruction) -> Flow:
    mnemonic = instruction.mnemonic
    if mnemonic in _STOPS:
        return STOP
    if mnemonic in ("br", "blr"):
        return Flow(falls=mnemonic == "blr", indirect=True)
    if mnemonic in _BRANCHES or mnemonic.startswith("b."):
        return Flow(falls=mnemonic != "b", target=last_address(instruction.operands))
    return Flow()


INSTRUCTIONS = InstructionSet(_classify, _flow)
