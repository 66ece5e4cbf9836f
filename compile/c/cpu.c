/* Does this processor, under this Linux, have the instructions that the model was compiled for? */
#define _DEFAULT_SOURCE
#include "intcert.h"

#include <stddef.h>
#include <string.h>

static int has(const char *flag);

const char *intcert_missing_instructions(void)
{
    static const char *const flags[] = INTCERT_CPU_FLAGS;

    for (size_t i = 0; flags[i]; i++)
        if (!has(flags[i]))
            return flags[i];
    return NULL;
}

#if defined(__x86_64__)

#include <cpuid.h>
#include <unistd.h>

/* Intel SDM, CPUID leaf 7: register (0 to 3: eax, ebx, ecx, edx) and bit, and the parts of XCR0 that the operating
 * system must save for it. */
#define AVX 0x6
#define AVX512 0xe6
#define AMX 0x60000

static const struct {
    const char *name;
    int output, bit;
    uint32_t saved;
} known[] = {
    {"avx2", 1, 5, AVX},          {"avx512f", 1, 16, AVX512},    {"avx512dq", 1, 17, AVX512},
    {"avx512bw", 1, 30, AVX512},  {"avx512vl", 1, 31, AVX512},   {"avx512vbmi", 2, 1, AVX512},
    {"avx512_vnni", 2, 11, AVX512}, {"amx_tile", 3, 24, AMX},    {"amx_int8", 3, 25, AMX},
};

/* Linux gives tiles to a process that asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). */
static int permitted(void)
{
    static const long call[4] = INTCERT_PERMISSION;

    return call[0] == 0 || syscall(call[0], call[1], call[2]) == 0;
}

static int has(const char *flag)
{
    uint32_t leaf[4], one[4], saved = 0, high;

    if (!__get_cpuid(1, &one[0], &one[1], &one[2], &one[3]) || !(one[2] >> 27 & 1) /* OSXSAVE */ ||
        !__get_cpuid_count(7, 0, &leaf[0], &leaf[1], &leaf[2], &leaf[3]))
        return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, flag) == 0)
            return (leaf[known[i].output] >> known[i].bit & 1) && (saved & known[i].saved) == known[i].saved &&
                   (known[i].saved != AMX || permitted());
    return 0;
}

#else

#include <sys/auxv.h>

/* Linux, arch/arm64/include/uapi/asm/hwcap.h and arch/arm/include/uapi/asm/hwcap.h. */
static const struct {
    const char *name;
    unsigned long vector;
    int bit;
} known[] = {
#if defined(__aarch64__)
    {"asimd", AT_HWCAP, 1},
    {"asimdrdm", AT_HWCAP, 12},
    {"asimddp", AT_HWCAP, 20},
    {"i8mm", AT_HWCAP2, 13},
#else
    {"neon", AT_HWCAP, 12},
    {"vfpv4", AT_HWCAP, 16},
    {"idiva", AT_HWCAP, 17},
#endif
};

static int has(const char *flag)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, flag) == 0)
            return getauxval(known[i].vector) >> known[i].bit & 1;
    return 0;
}

#endif
