"""The lists of instructions: what must be on none of them, and what the reading of a listing makes of it."""

from __future__ import annotations

import pytest

from intcert.compile.audit import FLOAT_TYPED, aarch64, arm, sass, x86
from intcert.compile.audit.instructions import Flow, Instruction, Kind, expand, expand_words
from intcert.compile.audit.names import ALLOWED_IMPORTS, is_float_routine

# Arithmetic, comparison, rounding and conversion of floats, by the manuals' chapters; written apart from the lists.
X86_FLOATS = """
    {,v}{add,sub,mul,div,sqrt,min,max,cmp}{ps,pd,ss,sd} v{add,sub,mul,div,sqrt,min,max,cmp}{ph,sh} {,v}addsub{ps,pd}
    {,v}{hadd,hsub}{ps,pd} {,v}dp{ps,pd} {,v}{rcp,rsqrt}{ps,ss} v{rcp,rsqrt}14{ps,pd,ss,sd} {,v}round{ps,pd,ss,sd}
    v{rndscale,reduce,scalef,getexp,getmant,range,fixupimm}{ps,pd,ss,sd} vfpclass{ps,pd}{,x,y,z} {,v}{,u}comis{s,d}
    v{fmadd,fmsub,fnmadd,fnmsub}{132,213,231}{ps,pd,ss,sd,ph,sh} vf{maddsub,msubadd}{132,213,231}{ps,pd,ph}
    {,v}cvt{dq2ps,dq2pd,ps2dq,tps2dq,pd2dq,tpd2dq,ps2pd,pd2ps,si2ss,si2sd,ss2si,sd2si,tss2si,tsd2si,ss2sd,sd2ss}
    vcvt{ph2ps,ps2ph,udq2ps,udq2pd,ps2udq,tps2udq,qq2ps,qq2pd,uqq2pd,pd2qq,w2ph,uw2ph,ph2w,neps2bf16,ne2ps2bf16}
    vcmp{eq,lt,le,unord,neq,nlt,nle,ord}{ps,pd,ss,sd} vdpbf16ps tdp{bf16,fp16}ps tcmm{r,i}mfp16ps vf{,c}mulc{ph,sh}
    f{ld,ld1,ldz,ldpi,ild,ist,istp,isttp,st,stp,add,addp,iadd,sub,subr,mul,mulp,div,divr,sqrt,abs,chs,rndint,scale,prem}
    f{sin,cos,sincos,ptan,patan,yl2x,2xm1,com,comi,ucom,ucomi,tst,xam,xch,cmovb,cmove,decstp,free,nop} pf{add,mul,sub}
    cvt{pi2ps,ps2pi,tps2pi,pi2pd,pd2pi} {,v}gatherpf0dps
"""
A64_FLOATS = """
    f{add,sub,mul,mulx,div,nmul,madd,msub,nmadd,nmsub,mla,mls,mlal,mlal2,mlsl,mlsl2,sqrt,abs,neg,abd,addp,addv}
    f{max,min,maxnm,minnm}{,p,v} f{cmp,cmpe,ccmp,ccmpe,cmeq,cmge,cmgt,cmle,cmlt,acge,acgt}
    f{recpe,recps,recpx,rsqrte,rsqrts}
    fcvt{,n,n2,l,l2,xn,as,au,ms,mu,ns,nu,ps,pu,zs,zu} frint{a,i,m,n,p,x,z,32x,32z,64x,64z} {s,u}cvtf fjcvtzs fcadd fcmla
    bf{dot,mmla,mlalb,mlalt,cvt,cvtn,cvtn2} {urecpe,ursqrte}
"""
ARM_FLOATS = """
    v{add,sub,mul,div,mla,mls,nmla,nmls,nmul,fma,fms,fnma,fnms,abs,neg,sqrt,cmp,cmpe,max,min,maxnm,minnm,abd}.{f16,f32,f64}
    v{ceq,cge,cgt,cle,clt,acge,acgt,pmax,pmin,padd,recpe,recps,rsqrte,rsqrts,selge,seleq}.f32 vrint{a,m,n,p,r,x,z}.f32
    vcvt{,a,b,m,n,p,r,t}.{s32.f32,u32.f64,f32.s32,f64.f32,f32.f16} vjcvt.s32.f64 v{add,mla,cvt}{eq,ne,gt}.f32
    v{dot,mmla,fmab,fmat}.bf16 vmov.f16 vdup.f32 f{add,mul,sub}s {vrecpe,vrsqrte}.u32
"""
SASS_FLOATS = """
    F{ADD,ADD32I,FMA,FMA32I,MUL,MUL32I,MNMX,MNMX3,SEL,SET,SETP,CHK,SWZADD,RND,HADD,HFMA,2F,2I,2FP,2IP} MUFU RRO
    H{ADD2,ADD2_32I,MUL2,MUL2_32I,FMA2_32I,SET2,SETP2,MNMX2,MMA,GMMA} D{ADD,FMA,MUL,MNMX,SET,SETP,MMA} I{2F,2FP}
    Q{MMA,GMMA} OMMA UF{ADD,MUL,FMA,SETP,SEL,MNMX,2I,2F} UI2F TEX TLD TLD4 SULD SUST UTCHMMA
"""
LISTS = {"x86": x86.INSTRUCTIONS.classify, "a64": aarch64.INSTRUCTIONS.classify, "arm": arm.INSTRUCTIONS.classify}


def instruction(text: str, address: int = 0x1000, size: int = 4) -> Instruction:
    mnemonic, _, operands = text.partition(" ")
    return Instruction(address, size, mnemonic, operands)


@pytest.mark.parametrize(
    ("classify", "words"),
    [
        (LISTS["x86"], X86_FLOATS),
        (LISTS["a64"], A64_FLOATS),
        (LISTS["arm"], ARM_FLOATS),
        (sass.classify, SASS_FLOATS),
    ],
    ids=["x86", "a64", "arm", "sass"],
)
def test_no_list_names_float_arithmetic(classify, words) -> None:
    mnemonics = list(expand_words(words))
    assert len(mnemonics) > 50
    assert [m for m in mnemonics if classify(Instruction(0, 4, m, "")) is not None] == []


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("x86", "vpdpbusd zmm0, zmm1, zmm2", Kind.DOT),
        ("x86", "vmovups zmm0, zmmword ptr [rax]", Kind.FLOAT_MOVE),
        ("x86", "vxorps xmm0, xmm0, xmm0", Kind.FLOAT_LOGIC),
        ("x86", "vshufps xmm0, xmm0, xmm0, 1", Kind.FLOAT_SHUFFLE),
        ("x86", "xchg ax,ax", Kind.CONTROL),
        ("x86", "xchg eax,edx", Kind.MOVE),
        ("x86", "", None),
        ("a64", "sdot v0.4s, v1.16b, v2.4b[0]", Kind.DOT),
        ("a64", "fmov w0, s0", Kind.FLOAT_MOVE),
        ("a64", "fcsel s0, s0, s1, eq", Kind.FLOAT_SHUFFLE),
        ("arm", "vadd.i32 q0, q0, q1", Kind.INTEGER),
        ("arm", "vmlal.s16 q0, d0, d1", Kind.INTEGER),
        ("arm", "addseq r0, r0, r1", Kind.INTEGER),
        ("arm", "ldr.w r0, [r1]", Kind.MOVE),
        ("arm", "vmov.f64 d0, d1", Kind.FLOAT_MOVE),
        ("arm", "vmov.i32 q8, #0x0", Kind.MOVE),
        ("arm", "bls 0x10", Kind.CONTROL),
        ("arm", "vadd.x32 q0, q0, q1", None),
    ],
)
def test_classes(name: str, text: str, kind: Kind | None) -> None:
    assert LISTS[name](instruction(text)) == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("HFMA2.MMA R5, -RZ, RZ, 0, 5.9604644775390625e-08", Kind.FLOAT_MOVE),
        ("HFMA2 R5, -RZ.H0_H0, RZ.H0_H0, 1.875, 0", Kind.FLOAT_MOVE),
        ("HFMA2 R5, R2, RZ, 0, 5.9604644775390625e-08", None),
        ("HFMA2 R5, -RZ, R3, 0, 5.9604644775390625e-08", None),
        ("HFMA2.MMA R5, R2.H0_H0, R3.H0_H0, R4", None),
        ("IMMA.16832.S8.S8 R4, R14.ROW, R4.COL, RZ", Kind.DOT),
        ("IGMMA.64x64x32.S8.S8 R4, gdesc[UR4], R4", Kind.DOT),
        ("FLO.U32 R0, R1", Kind.INTEGER),
        ("FSEL R0, R1, R2, P0", None),
        ("HMMA.16816.F32 R4, R14, R4, RZ", None),
    ],
)
def test_sass_classes(text: str, kind: Kind | None) -> None:
    assert sass.classify(instruction(text)) == kind


@pytest.mark.parametrize(
    ("isa", "text", "flow"),
    [
        (x86, "jmp 0x1012", Flow(False, 0x1012)),
        (x86, "je 1012", Flow(True, 0x1012)),
        (x86, "call 0x1012", Flow(True, 0x1012)),
        (x86, "call rax", Flow(True, None, True)),
        (x86, "jmp qword ptr [rip + 450506]", Flow(False, None, True)),
        (x86, "ret", Flow(False)),
        (x86, "vpaddd zmm0, zmm0, zmm1", Flow()),
        (aarch64, "b 0x10460", Flow(False, 0x10460)),
        (aarch64, "b.lt 10460", Flow(True, 0x10460)),
        (aarch64, "tbnz w0, #3, 0x10460", Flow(True, 0x10460)),
        (aarch64, "bl 0x10460", Flow(True, 0x10460)),
        (aarch64, "blr x8", Flow(True, None, True)),
        (aarch64, "br x17", Flow(False, None, True)),
        (aarch64, "ret", Flow(False)),
        (arm, "blo 0x10354", Flow(True, 0x10354)),
        (arm, "b 0x10354", Flow(False, 0x10354)),
        (arm, "bl 0x10354", Flow(True, 0x10354)),
        (arm, "bx lr", Flow(False)),
        (arm, "bxlt lr", Flow(True)),
        (arm, "bx r3", Flow(False, None, True)),
        (arm, "blx r3", Flow(True, None, True)),
        (arm, "pop {r4, pc}", Flow(False)),
        (arm, "popeq {r4, pc}", Flow(True)),
        (arm, "pop {r4, lr}", Flow()),
        (arm, "ldm sp!, {r4, pc}", Flow(False)),
        (arm, "mov pc, lr", Flow(False)),
        (arm, "ldr pc, [ip, #8]!", Flow(False, None, True)),
        (arm, "addls pc, pc, r0, lsl #2", Flow(True, None, True)),
        (arm, "add r0, pc, r0", Flow()),
    ],
)
def test_where_instructions_go(isa, text: str, flow: Flow) -> None:
    assert isa.INSTRUCTIONS.flow(instruction(text)) == flow


def test_float_typed_classes_only_move_bits() -> None:
    for table in (x86._KINDS, aarch64._KINDS, arm._KINDS):
        assert not any(name.startswith(("cvt", "vcvt")) for name in table)
    typed = {name for name, kind in x86._KINDS.items() if kind in FLOAT_TYPED}
    suffixes = ("ps", "pd", "ss", "sd", "sh", "dup", "128", "x2", "x4", "x8")
    assert all(name.endswith(suffixes) for name in typed)


def test_lists_are_disjoint_and_words_expand() -> None:
    assert list(expand_words("a{,b}{c,d} e")) == ["ac", "ad", "abc", "abd", "e"]
    with pytest.raises(ValueError, match="add is in two classes: integer and logic"):
        expand({Kind.INTEGER: "add", Kind.LOGIC: "and add"})


@pytest.mark.parametrize(
    "name",
    list(
        expand_words("""
            __addsf3 __powisf2 __cmpdf2 __floatdidf __fixsfsi __extendhfsf2 __gnu_h2f_ieee __aeabi_{dmul,fcmpge,i2f}
            compiler_rt.addf3.__addsf3 sqrtf@plt {exp,round,lround}f fmax
        """)
    ),
)
def test_float_routines_by_name(name: str) -> None:
    assert is_float_routine(name)


@pytest.mark.parametrize("name", ["memcpy", "__divdi3", "__aeabi_ldivmod", "kernel_body.5", "frame_dummy", "network"])
def test_other_names(name: str) -> None:
    assert not is_float_routine(name)


def test_no_float_routine_may_be_imported() -> None:
    assert [name for name in ALLOWED_IMPORTS if is_float_routine(name)] == []
