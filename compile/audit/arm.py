"""A32 and T32: integer, move and control instructions, as the Arm Architecture Reference Manual for ARMv7-A names them.

A mnemonic is a name, perhaps a condition, and types: ``vaddeq.i32``. One name serves integers and floats (``vadd.i32``,
``vadd.f32``), so the types decide too: any float type is refused but in a move.
"""

from __future__ import annotations

import re

from intcert.compile.audit.instructions import STOP, Flow, Instruction, InstructionSet, Kind, expand, last_address

_CONDITIONS = ("eq", "ne", "cs", "hs", "cc", "lo", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le", "al")
_INTEGER_TYPE = re.compile(r"[isup]?(?:8|16|32|64)")

_KINDS = expand(
    {
        Kind.INTEGER: """
            {add,adc,sub,sbc,rsb,rsc,mul,mla}{,s} {addw,subw,mls,cmp,cmn,clz,sdiv,udiv,umaal} {s,u}{mull,mlal}{,s}
            smul{b,t,w}{b,t} smla{b,t,w}{b,t} smlal{b,t}{b,t} sm{mul,mla,mls}{,r} sm{uad,usd,lad,lsd,lald,lsld}{,x}
            {lsl,lsr,asr,ror,rrx}{,s} {s,u}xt{,a}{b,h,b16} {s,u,q,uq,sh,uh}{add,sub}{8,16} q{,d}{add,sub}
            {s,u}sat{,16} {usad8,usada8,sbfx,ubfx,bfi,bfc}
            v{add,sub}{,l,w,hn} v{radd,rsub}hn v{hadd,rhadd,hsub,qadd,qsub} v{mul,mla,mls}{,l} vq{,r}dmulh
            vqdm{ull,lal,lsl} vqrdml{a,s}h v{max,min} vp{max,min,add,addl,adal} v{,q}{abs,neg} v{abd,aba}{,l}
            v{shl,rshl,qshl,qrshl,qshlu,shll} v{shr,rshr,sra,rsra} v{,r,q,qr}shrn v{q,qr}shrun v{sli,sri}
            v{movl,movn,qmovn,qmovun} vc{eq,ge,gt,le,lt,ls,lz,nt}
        """,
        Kind.DOT: "v{s,u,us,su}dot v{s,u,us}mmla",
        Kind.LOGIC: "{and,orr,orn,eor,bic,mvn}{,s} {tst,teq,rbit} v{and,orr,orn,eor,bic,mvn,bsl,bit,bif,tst}",
        Kind.MOVE: """
            mov{,s,w,t} ldr{,b,h,sb,sh,d} str{,b,h,d} {ldm,stm}{,ia,ib,da,db} {push,pop,adr,pld,pli}
            {vmov,vldr,vstr,vpush,vpop} v{ldm,stm}{,ia,db} v{ld,st}{1,2,3,4}
        """,
        Kind.SHUFFLE: "{vdup,vext,vtbl,vtbx,vzip,vuzp,vtrn,vrev16,vrev32,vrev64,vswp,rev,rev16,revsh,pkhbt,pkhtb,sel}",
        Kind.CONTROL: "{b,bl,bx,blx,cbz,cbnz,tbb,tbh,nop,udf,bkpt} it{,t,e}{,t,e}{,t,e}",
        Kind.SYSTEM: "{dmb,dsb,isb}",
        Kind.FLOAT_MOVE: "vmov.{f32,f64}",
    }
)
_BRANCHES = frozenset({"b", "bl", "blx", "cbz", "cbnz"})
_READS_ONLY = frozenset({"cmp", "cmn", "tst", "teq", "push", "vpush"})


def _name(mnemonic: str) -> tuple[str, bool]:
    """The name in the list that a mnemonic has before its types, or "", and whether a condition follows it."""
    if mnemonic in _KINDS:
        return mnemonic, False
    name = mnemonic[:-2] if mnemonic.endswith(_CONDITIONS) else ""
    return (name, True) if name in _KINDS else ("", False)


def _split(mnemonic: str) -> tuple[str, bool, list[str]]:
    head, *types = mnemonic.split(".")
    name, conditional = _name(head)
    return name, conditional, [kind for kind in types if kind not in ("w", "n")]


def _classify(instruction: Instruction) -> Kind | None:
    name, _, types = _split(instruction.mnemonic)
    if not name:
        return None
    if all(map(_INTEGER_TYPE.fullmatch, types)):
        return _KINDS[name]
    return _KINDS.get(".".join([name, *types]))


def _flow(instruction: Instruction) -> Flow:
    name, conditional, _ = _split(instruction.mnemonic)
    operands = instruction.operands
    first = operands.split(",")[0].strip()
    if name in _BRANCHES:
        target = last_address(operands)
        return Flow(conditional or name != "b", target, indirect=target is None)
    if name == "udf":
        return STOP
    # Any instruction that writes pc branches; a return takes lr, or what a function saved of it.
    if name == "bx" or (first == "pc" and name not in _READS_ONLY and not name.startswith("st")):
        returns = operands in ("lr", "pc, lr")
    elif name in ("tbb", "tbh"):
        returns = False
    elif name == "pop" or name.startswith("ldm"):
        if not re.search(r"\bpc\b", operands):
            return Flow()
        returns = True
    else:
        return Flow()
    return Flow(falls=conditional, indirect=not returns)


INSTRUCTIONS = InstructionSet(_classify, _flow)
