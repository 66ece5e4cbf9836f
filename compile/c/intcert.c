#include "intcert.h"

#include <stddef.h>
#include <string.h>

#define BATCH_ROWS 16 /* of one call: enough to fill every chunk */
#define ALIGNED _Alignas(64)
#define OVERREAD 64 /* kernels may read so many bytes past the image */

static ALIGNED uint8_t arena[INTCERT_ARENA_BYTES];
static ALIGNED uint8_t pixels[INTCERT_IMAGE_BYTES + OVERREAD];
static ALIGNED int32_t rows[BATCH_ROWS * INTCERT_CLASSES];

void intcert_count(const uint8_t *image, uint64_t key, int64_t first, int64_t n, int32_t *counts)
{
    memcpy(pixels, image, INTCERT_IMAGE_BYTES);
    for (int64_t end = first + n; first < end; first += BATCH_ROWS * INTCERT_ROW) {
        int64_t samples = end - first;
        if (samples > BATCH_ROWS * INTCERT_ROW)
            samples = BATCH_ROWS * INTCERT_ROW;
        intcert_counts(pixels, rows, intcert_constants, arena, (int64_t)key, first, samples);
        int used = (int)((samples + INTCERT_ROW - 1) / INTCERT_ROW) * INTCERT_CLASSES;
        for (int i = 0; i < used; i++)
            counts[i % INTCERT_CLASSES] += rows[i];
    }
}

/* The table of the rule: how many samples have been drawn at each look, and what a look decides about the number of
 * them that fell in the selected class. */
#define GO_ON (-2)

#if INTCERT_LOOKS /* kt:R, sequential: the table is sample counts, then least accepted, then largest rejected counts */

static int32_t samples_at(int look)
{
    return intcert_table[look];
}

static int32_t decide(int look, int32_t count)
{
    if (count >= intcert_table[INTCERT_LOOKS + look])
        return INTCERT_CLAIM;
    if (count <= intcert_table[2 * INTCERT_LOOKS + look] || look == INTCERT_LOOKS - 1)
        return INTCERT_ABSTAIN;
    return GO_ON;
}

#else /* cp1, after all samples: the table is the claims of the counts N - INTCERT_CLAIMS + 1 .. N */

static int32_t samples_at(int look)
{
    (void)look;
    return INTCERT_N;
}

static int32_t decide(int look, int32_t count)
{
    int32_t position = count - (INTCERT_N - INTCERT_CLAIMS + 1);
    (void)look;
    return position >= 0 ? intcert_table[position] : INTCERT_ABSTAIN;
}

#endif

enum intcert_status intcert_certify(const uint8_t *image, uint64_t key, struct intcert_certificate *certificate)
{
    int32_t selection[INTCERT_CLASSES] = {0};
    int32_t *counts = certificate->counts, samples = 0, claim = GO_ON, total;
    int selected = 0;

    if (INTCERT_N == 0)
        return INTCERT_NO_TABLE;
    intcert_count(image, key, 0, INTCERT_N0, selection);
    for (int i = 1; i < INTCERT_CLASSES; i++)
        if (selection[i] > selection[selected])
            selected = i;
    memset(counts, 0, sizeof certificate->counts);
    for (int look = 0; claim == GO_ON; look++) {
        int32_t next = samples_at(look);
        intcert_count(image, key, INTCERT_N0 + samples, next - samples, counts);
        samples = next;
        total = 0;
        for (int i = 0; i < INTCERT_CLASSES; i++)
            total += counts[i];
        if (total != samples)
            return INTCERT_LOST;
        claim = decide(look, counts[selected]);
    }
    certificate->predict = claim == INTCERT_ABSTAIN ? INTCERT_ABSTAIN : selected;
    certificate->sqradius = claim;
    certificate->samples = samples;
    return INTCERT_OK;
}

/* Philox 4x32-10 (Salmon et al., SC 2011) of the counter (index low, 2, index high, 0); the domain 2 is that of keys. */
uint64_t intcert_image_key(uint64_t run_key, uint64_t index)
{
    uint32_t c0 = (uint32_t)index, c1 = 2, c2 = (uint32_t)(index >> 32), c3 = 0;
    uint32_t k0 = (uint32_t)run_key, k1 = (uint32_t)(run_key >> 32);

    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)c0 * 0xD2511F53u, product1 = (uint64_t)c2 * 0xCD9E8D57u;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t)c0 << 32 | c1;
}

uint32_t intcert_radius(int32_t sqradius)
{
    const uint64_t steps = 255 * 255, millionths = 1000000000000;
    uint64_t square, root = 0;

    if (sqradius <= 0)
        return 0;
    /* In two parts, since the product of all would not fit 64 bits. */
    square = (uint64_t)sqradius / steps * millionths + (uint64_t)sqradius % steps * millionths / steps;
    for (int bit = 31; bit >= 0; bit--) {
        uint64_t trial = root | (uint64_t)1 << bit;
        if (trial * trial <= square)
            root = trial;
    }
    return (uint32_t)root;
}
