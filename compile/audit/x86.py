"""x86-64: integer, move and control instructions, as the Intel 64 manual (volume 2) names them in Intel syntax."""

from __future__ import annotations

from intcert.compile.audit.instructions import STOP, Flow, Instruction, InstructionSet, Kind, expand, last_address

_CONDITIONS = "{o,no,b,c,nae,ae,nb,nc,e,z,ne,nz,be,na,a,nbe,s,ns,p,pe,np,po,l,nge,ge,nl,le,ng,g,nle}"

_KINDS = expand(
    {
        Kind.INTEGER: """
            {add,sub,adc,sbb,adcx,adox,inc,dec,neg,mul,imul,mulx,div,idiv,cmp,lea,cdq,cdqe,cqo,cwd,cwde,cbw}
            {lzcnt,tzcnt,bsf,bsr,popcnt,shl,shr,sar,sal,rol,ror,rcl,rcr,shld,shrd,shlx,shrx,sarx,rorx}
            {,v}p{add,sub}{b,w,d,q} {,v}p{add,sub}{s,us}{b,w} {,v}pavg{b,w} {,v}psadbw {,v}mpsadbw vdbpsadbw
            {,v}p{max,min}{s,u}{b,w,d} vp{max,min}{s,u}q {,v}pabs{b,w,d} vpabsq {,v}psign{b,w,d}
            {,v}pmul{lw,ld,hw,huw,hrsw,dq,udq} vpmullq vpmadd52{l,h}uq {,v}ph{add,sub}{w,d,sw} {,v}phminposuw
            {,v}pcmp{eq,gt}{b,w,d,q} vpcmp{,u}{b,w,d,q} vpcmp{eq,lt,le,neq,nlt,nle,ge,gt}{,u}{b,w,d,q}
            {,v}ps{ll,rl}{w,d,q} {,v}psra{w,d} vpsraq vps{ll,rl,ra}v{w,d,q} vpro{l,r}{,v}{d,q} vpsh{l,r}d{,v}{w,d,q}
            vplzcnt{d,q} vpopcnt{b,w,d,q} vpconflict{d,q} vpmultishiftqb
            {,v}pack{ss,us}{wb,dw} {,v}pmov{s,z}x{bw,bd,bq,wd,wq,dq} vpmov{,s,us}{wb,db,dw,qb,qw,qd} kadd{b,w,d,q}
        """,
        Kind.DOT: """
            {,v}pmaddwd {,v}pmaddubsw vpdp{busd,wssd}{,s} vpdpb{ss,su,uu}d{,s} vpdpw{su,us,uu}d{,s}
            tdpb{ss,su,us,uu}d
        """,
        Kind.LOGIC: """
            {and,or,xor,not,test,andn,bextr,blsr,blsi,blsmsk,bt,bts,btr,btc,bzhi,pdep,pext}
            {,v}p{and,andn,or,xor} vp{and,andn,or,xor}{d,q} vpternlog{d,q} {,v}ptest vptest{,n}m{b,w,d,q}
            k{and,andn,or,xor,xnor,not,ortest,test,shiftl,shiftr}{b,w,d,q} {,v}gf2p8{affineqb,affineinvqb,mulb}
        """,
        Kind.MOVE: f"""
            mov movabs movsx movzx movsxd movbe push pop leave xchg cmov{_CONDITIONS} set{_CONDITIONS}
            movs{{,b,w,q}} stos{{,b,w,d,q}}
            {{,v}}mov{{d,q,dqa,dqu,ntdq,ntdqa}} vmovdqa{{32,64}} vmovdqu{{8,16,32,64}} vmovw {{,v}}lddqu {{,v}}pmovmskb
            vpmov{{b,w,d,q}}2m vpmovm2{{b,w,d,q}} kmov{{b,w,d,q}} vpmaskmov{{d,q}} vp{{gather,scatter}}{{d,q}}{{d,q}}
            prefetch{{t0,t1,t2,nta,w}} tile{{loadd,loaddt1,stored,zero}} vzeroupper vzeroall
        """,
        Kind.SHUFFLE: """
            bswap {,v}pshuf{b,d,hw,lw} {,v}punpck{l,h}{bw,wd,dq,qdq} {,v}palignr valign{d,q} {,v}ps{l,r}ldq
            vperm{b,w,d,q} vperm{t2,i2}{b,w,d,q} vperm2i128 vpbroadcast{b,w,d,q} vpbroadcastm{b2q,w2d}
            vbroadcasti{128,32x2,32x4,32x8,64x2,64x4} vpblendd {,v}pblendw {,v}pblendvb vpblendm{b,w,d,q}
            {,v}pinsr{b,w,d,q} {,v}pextr{b,w,d,q} v{insert,extract}i{128,32x4,32x8,64x2,64x4}
            vp{compress,expand}{b,w,d,q} vshufi{32x4,64x2} vpshufbitqmb kunpck{bw,wd,dq}
        """,
        Kind.CONTROL: f"jmp j{_CONDITIONS} {{jecxz,jrcxz,call,ret,nop,endbr64,ud2,int3}}",
        Kind.SYSTEM: "{ldtilecfg,sttilecfg,tilerelease,mfence,lfence,sfence}",
        Kind.FLOAT_MOVE: """
            {,v}mov{aps,apd,ups,upd,ss,sd,lps,lpd,hps,hpd,lhps,hlps,ntps,ntpd} vmovsh {,v}movmsk{ps,pd}
            vmaskmov{ps,pd} v{gather,scatter}{d,q}{ps,pd}
        """,
        Kind.FLOAT_LOGIC: "{,v}{and,andn,or,xor}{ps,pd} vtest{ps,pd}",
        Kind.FLOAT_SHUFFLE: """
            {,v}shuf{ps,pd} {,v}unpck{l,h}{ps,pd} vpermil{ps,pd} vperm{ps,pd} vperm{t2,i2}{ps,pd} vperm2f128
            vbroadcast{ss,sd} vbroadcastf{128,32x2,32x4,32x8,64x2,64x4} {,v}blend{,v}{ps,pd} vblendm{ps,pd}
            {,v}{insert,extract}ps v{insert,extract}f{128,32x4,32x8,64x2,64x4} v{compress,expand}{ps,pd}
            {,v}mov{d,sh,sl}dup vshuff{32x4,64x2}
        """,
    }
)
_STOPS = frozenset({"ret", "ud2", "int3"})


def _classify(instruction: Instruction) -> Kind | None:
    if (instruction.mnemonic, instruction.operands) == ("xchg", "ax,ax"):
        return Kind.CONTROL  # what GNU's disassembler calls a two-byte nop
    return _KINDS.get(instruction.mnemonic)


def _flow(instruction: Instruction) -> Flow:
    mnemonic = instruction.mnemonic
    if mnemonic in _STOPS:
        return STOP
    if mnemonic == "call" or mnemonic.startswith("j"):
        target = last_address(instruction.operands)
        return Flow(falls=mnemonic != "jmp", target=target, indirect=target is None)
    return Flow()


INSTRUCTIONS = InstructionSet(_classify, _flow)
