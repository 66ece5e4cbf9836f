"""Which functions of other libraries an integer-only library may call, and which names mean arithmetic on floats."""

from __future__ import annotations

import re

from intcert.compile.audit.instructions import expand_words

# What the compilers of kernels call: memory, TVM's error reporting, and division wider than the machine divides.
ALLOWED_IMPORTS = frozenset(
    expand_words("""
        mem{cpy,move,set} syscall abort
        TVMFFIErrorSetRaisedFromCStr{,Parts} TVMBackend{Alloc,Free}Workspace
        __{,u}{div,mod}{s,d,t}i3 __{,u}divmod{s,d,t}i4 __mul{d,t}i3 __{ashl,ashr,lshr}{d,t}i3
        __aeabi_mem{cpy,move,set,clr}{,4,8} __aeabi_{,u}idiv{,mod} __aeabi_{,u}ldivmod __aeabi_l{mul,asr,lsl,lsr}
    """)
)

# What the C runtime's start and end code and its unwind tables name, mostly weakly.
C_RUNTIME_IMPORTS = frozenset(
    expand_words("__gmon_start__ _ITM_{,de}registerTMCloneTable __cxa_finalize __aeabi_unwind_cpp_pr{0,1,2}")
)

# How a host function launches device kernels; only where the library carries device code, which is audited too.
LAUNCH_IMPORTS = frozenset(expand_words("TVMFFIEnvModLookupFromImports TVMFFIFunctionCall"))

# What VM code may call by name, besides the library's own functions: checks, shapes and memory.
ALLOWED_VM_CALLS = frozenset(
    expand_words("""
        vm.builtin.{alloc_shape_heap,alloc_storage,alloc_tensor,null_value,make_tuple,tuple_getitem,match_shape}
        vm.builtin.{make_shape,match_prim_value,make_prim_value,check_tensor_info,check_shape_info,check_tuple_info}
        vm.builtin.check_prim_value_info
    """)
)

# Names of libgcc's and compiler-rt's routines (GCC internals, "Soft float library routines"; Arm run-time ABI, 4.1.2).
_SOFT_FLOAT = re.compile(
    r"__(?:add|sub|mul|div|neg|cmp|unord|eq|ne|lt|le|gt|ge|powi)[hbsdtx]f[23]"
    r"|__(?:fix|fixuns)[hbsdtx]f[sdt]i|__(?:float|floatun|floatuns|floatun)[sdt]i[hbsdtx]f"
    r"|__(?:extend|trunc)[hbsdtx]f[hbsdtx]f2|__gnu_(?:h2f|f2h|d2h)_\w+"
    r"|__aeabi_(?:[fd](?:add|sub|rsub|mul|div|neg|cmp\w+|2\w+)|c[fd]cmp\w+|(?:u?i|u?l)2[fd]|h2[fd]\w*)"
)
_LIBM = re.compile(
    r"(?:a?(?:cos|sin|tan)h?|atan2|exp|exp2|exp10|expm1|log|log2|log10|log1p|logb|ilogb|pow|sqrt|cbrt|hypot|erfc?"
    r"|[lt]gamma|fabs|fmin|fmax|fmod|fma|fdim|floor|ceil|trunc|l?l?round|roundeven|l?l?rint|nearbyint|ldexp|frexp"
    r"|modf|scalbl?n|copysign|remainder|remquo|nextafter)[fl]?"
)


def is_float_routine(name: str) -> bool:
    """Whether a function of this name computes with floats, in whatever instructions.

    A static library prefixes local copies (``compiler_rt.addf3.__addsf3``) and the linker marks stubs and versions
    (``sqrtf@plt``).
    """
    name = name.split("@")[0].rsplit(".", 1)[-1]
    return bool(_SOFT_FLOAT.fullmatch(name) or _LIBM.fullmatch(name))


def role(name: str, section: str) -> str:
    """What a function of the library is for, by its name."""
    if is_float_routine(name):
        return "float routine"
    if section.startswith((".plt", ".iplt")):
        return "linkage"
    if section in (".init", ".fini") or name in _C_RUNTIME:
        return "C runtime"
    if name.startswith("__tvm_ffi_"):
        return "entry point"
    if name in ALLOWED_IMPORTS or name.startswith("compiler_rt."):
        return "compiler runtime"
    if name.endswith("_compute_") or name.startswith("__tvm_set_raised"):
        return "host"
    return "kernel"


_C_RUNTIME = frozenset(
    expand_words("""
        {,de}register_tm_clones __do_global_dtors_aux frame_dummy call_weak_fn __aeabi_unwind_cpp_pr{0,1,2} _init _fini
    """)
)
