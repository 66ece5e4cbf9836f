"""SASS, the machine code of NVIDIA GPUs: integer, move and control instructions of Turing to Hopper.

Names are those of the tables in "CUDA Binary Utilities" (NVIDIA), without modifiers: ``IMAD`` stands for
``IMAD.MOV.U32`` too. Instructions have a fixed size, so that none can be entered in the middle.
"""

from __future__ import annotations

import re

from intcert.compile.audit.instructions import Instruction, Kind, expand

TENSOR_CORE = ("IMMA", "IGMMA")

_KINDS = expand(
    {
        Kind.INTEGER: """
            {IABS,IADD,IADD3,IMAD,IMNMX,IMUL,ISCADD,ISETP,ISET,ICMP,LEA,BMSK,BREV,FLO,POPC,SGXT,SHF,SHL,SHR,SCADD}
            {I2I,I2IP,VABSDIFF,VABSDIFF4,VIADD,VIADDMNMX,VIMNMX,VIMNMX3,VHMNMX,VADDMNMX,CCTLL}
            {UBREV,UFLO,UIADD3,UIMAD,UIMNMX,UISETP,ULEA,UPOPC,USGXT,USHF,USHL,USHR,UBMSK,UVIADD,UVIMNMX}
        """,
        Kind.DOT: "{IDP,IDP4A,IMMA,IGMMA,BMMA,BGMMA}",
        Kind.LOGIC: "{LOP,LOP3,PLOP3,ULOP,ULOP3,UPLOP3,PSETP,R2P,P2R,UP2UR,UR2UP,VOTE,VOTEU}",
        Kind.MOVE: """
            {MOV,UMOV,SEL,USEL,S2R,S2UR,CS2R,R2UR,B2R,R2B,LEPC,ULEPC,GETLMEMBASE,SETLMEMBASE,PRMT,UPRMT}
            {LD,LDC,LDG,LDS,LDL,LDSM,ULDC,LDGSTS,LDGDEPBAR,LDTRAM,ST,STG,STS,STL,STSM,STAS,REDAS}
            {ATOM,ATOMS,ATOMG,RED,REDG,REDUX,CCTL,CCTLT,ERRBAR,MEMBAR,FENCE,QSPC,MATCH,MOVM}
            {UBLKCP,UBLKPF,UBLKRED,UTMALDG,UTMASTG,UTMAPF,UTMAREDG,UTMACCTL,UTMACMDFLUSH,UCGABAR_ARV,UCGABAR_WAIT}
        """,
        Kind.SHUFFLE: "SHFL",
        Kind.CONTROL: """
            {BRA,BRX,JMP,JMX,BRXU,JMXU,CALL,RET,EXIT,KILL,BPT,NOP,BREAK,BMOV,BSSY,BSYNC,WARPSYNC,YIELD,RPCMOV,RTT}
            {NANOSLEEP,NANOTRAP,PREEXIT,ACQBULK,ENDCOLLECTIVE,ELECT,WARPGROUP,WARPGROUPSET}
        """,
        Kind.SYSTEM: "{BAR,UCGABAR,DEPBAR,ARRIVES,SYNCS,PMTRIG,CGAERRBAR,CSMTEST,SETCTAID,UTMACCTL_IV,USETMAXREG}",
        Kind.FLOAT_MOVE: "HFMA2",
    }
)
_ZERO_FACTORS = re.compile(r"U?R\w+(?:\.\w+)*, -?RZ(?:\.\w+)*, -?RZ(?:\.\w+)*, .*")


def classify(instruction: Instruction) -> Kind | None:
    """The class of an instruction; None where it computes with floats, or is not known.

    The assembler loads a constant by a half-float multiply-add whose two factors are the zero register: a move.
    """
    name = instruction.mnemonic.split(".")[0]
    if name == "HFMA2" and not _ZERO_FACTORS.fullmatch(instruction.operands):
        return None
    return _KINDS.get(name)
