/* A certified classifier in C: image in, counts and certificate out.
 *
 * Integers only. No heap, no threads, no operating system except in cpu.c and main.c. The functions share one static
 * working memory, so one call at a time.
 */
#ifndef INTCERT_H
#define INTCERT_H

#include <stdint.h>

#include "model.h"

#define INTCERT_ROW 64 /* samples a row of counts */
#define INTCERT_ABSTAIN (-1)
#define INTCERT_IMAGE_BYTES (INTCERT_HEIGHT * INTCERT_WIDTH * INTCERT_CHANNELS)
#define INTCERT_DIGEST 65 /* characters of a SHA-256 in hex, with the final 0 */

struct intcert_certificate {
    int32_t predict;                 /* certified class, or INTCERT_ABSTAIN */
    int32_t sqradius;                /* every integer perturbation of squared l2 norm <= this keeps the class; or -1 */
    int32_t samples;                 /* estimation samples drawn */
    int32_t counts[INTCERT_CLASSES]; /* what the network decided on them */
};

enum intcert_status {
    INTCERT_OK,
    INTCERT_NO_TABLE, /* the model was compiled without a certificate table */
    INTCERT_LOST,     /* the counts do not add up to the number of samples: this machine computes wrongly */
};

/* Certify an image, uint8[H][W][C], under its noise key: Algorithm 1 of Cohen et al. (ICML 2019) by the table that was
 * compiled in. The key must be secret until now and serve no other call on this image. */
enum intcert_status intcert_certify(const uint8_t *image, uint64_t key, struct intcert_certificate *certificate);

/* Add the argmax counts of the samples first .. first + n - 1 to counts[INTCERT_CLASSES]; first >= 0. */
void intcert_count(const uint8_t *image, uint64_t key, int64_t first, int64_t n, int32_t *counts);

/* Noise key of image number index in a run under run_key. */
uint64_t intcert_image_key(uint64_t run_key, uint64_t index);

/* sqrt(sqradius) / 255, the radius on the [0, 1] scale, in millionths and rounded down; 0 for an abstention. */
uint32_t intcert_radius(int32_t sqradius);

/* SHA-256 of the line "H W C" and the image's bytes, as ledgers have it. */
void intcert_image_digest(const uint8_t *image, char digest[INTCERT_DIGEST]);

/* NULL where this processor can run the model; else the instruction set that it lacks, as /proc/cpuinfo names it. Call
 * it before anything that counts. */
const char *intcert_missing_instructions(void);

/* The compiled model (model.o). Pointers must be 64-byte aligned, image with INTCERT_IMAGE_BYTES, rows with
 * INTCERT_CLASSES numbers for each 64 samples, arena with INTCERT_ARENA_BYTES. counts overwrites rows; layers runs the
 * kernels begin .. end - 1 of one chunk of INTCERT_CHUNK samples that lies in the arena. */
void intcert_counts(const uint8_t *image, int32_t *rows, const uint8_t *constants, uint8_t *arena, int64_t key,
                    int64_t first, int64_t n);
void intcert_layers(const uint8_t *constants, uint8_t *arena, int64_t begin, int64_t end);

/* data.S: what counts and layers take as constants, and the certificate table. */
extern const uint8_t intcert_constants[];
extern const int32_t intcert_table[];

#endif
