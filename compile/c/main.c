/* Certify one image on a Linux board: see usage below. Text goes through fputs, so that no floating point of printf is
 * linked in. */
#define _DEFAULT_SOURCE
#include "intcert.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define WRONG_PROCESSOR 3
#define USER_ERROR 4
#define MAX_HEADER 512 /* of a PPM file, comments included */
#define MAX_DECIMAL 20

static const char usage[] =
    " IMAGE [OPTIONS]\n"
    "\n"
    "Certifies IMAGE with the table inside, by noise that is drawn here. IMAGE: " INTCERT_SHAPE " (height, width,\n"
    "channels) bytes, or a binary PPM or PGM file of that size.\n"
    "\n"
    "  --run-key HEX   secret key of a run, 16 hexadecimal digits; with --idx it gives the image's noise key\n"
    "  --idx I         the image's position in its data set\n"
    "  --key HEX       the image's noise key itself; without any, a fresh secret one\n"
    "  --first F --n N count the decisions on the samples F .. F + N - 1, and certify nothing\n"
    "  --ledger        print a row of a ledger (needs --idx and --label)\n"
    "  --label L       the image's class\n"
    "  --header        print the first line of a ledger\n"
    "\n"
    "A certificate whose key the adversary could know before choosing the image is worth nothing.\n"
    "Exit codes: 0, an abstention included; 3: this processor cannot run the model; 4: a user's error.\n";

static const char header[] = "idx\tlabel\tpredict\tradius\tcorrect\ttime\tsqradius\timage_sha\tsamples\tcounts\trule\t"
                             "alpha\tsigma\tkey\tgraph\tnoise\ttarget\tdevice\n";

static const char *const class_names[INTCERT_CLASSES + 1] = INTCERT_CLASS_NAMES;
static uint8_t file[INTCERT_IMAGE_BYTES + MAX_HEADER];

static struct {
    const char *image, *run_key, *key, *idx, *label, *first, *n;
    int ledger;
} options;

static int fail(int code, const char *const parts[])
{
    fputs("error: ", stderr);
    for (; *parts; parts++)
        fputs(*parts, stderr);
    fputs("\n", stderr);
    return code;
}

#define REFUSE(...) fail(USER_ERROR, (const char *const[]){__VA_ARGS__, NULL})

static char *decimal(uint64_t value, char text[MAX_DECIMAL + 1])
{
    char *begin = text + MAX_DECIMAL;

    *begin = 0;
    do
        *--begin = (char)('0' + value % 10);
    while (value /= 10);
    return begin;
}

static void print_number(int64_t value)
{
    char text[MAX_DECIMAL + 1];

    if (value < 0)
        fputs("-", stdout);
    fputs(decimal(value < 0 ? 0 - (uint64_t)value : (uint64_t)value, text), stdout);
}

/* value / 10^digits with all its digits */
static void print_fraction(uint64_t value, int digits)
{
    char text[MAX_DECIMAL + 1];
    uint64_t unit = 1;

    for (int i = 0; i < digits; i++)
        unit *= 10;
    print_number((int64_t)(value / unit));
    fputs(".", stdout);
    fputs(decimal(unit + value % unit, text) + 1, stdout);
}

static void print_key(uint64_t key)
{
    for (int shift = 60; shift >= 0; shift -= 4)
        fputc("0123456789abcdef"[key >> shift & 15], stdout);
}

static void print_counts(const int32_t *counts)
{
    const char *comma = "";

    for (int i = 0; i < INTCERT_CLASSES; i++)
        if (counts[i]) {
            fputs(comma, stdout);
            print_number(i);
            fputs(":", stdout);
            print_number(counts[i]);
            comma = ",";
        }
}

static void print_radius(int32_t sqradius)
{
    if (*INTCERT_RADIUS && sqradius != INTCERT_ABSTAIN)
        fputs(INTCERT_RADIUS, stdout); /* what the sequential rule was asked for */
    else
        print_fraction(intcert_radius(sqradius), 6);
}

static int parse_decimal(const char *text, uint64_t limit, uint64_t *value)
{
    *value = 0;
    for (const char *p = text; *p; p++) {
        uint64_t digit = (uint64_t)*p - '0'; /* beyond 9 for everything else */
        if (digit > 9 || digit > limit || *value > (limit - digit) / 10)
            return 0;
        *value = *value * 10 + digit;
    }
    return *text != 0;
}

static int parse_key(const char *text, uint64_t *key)
{
    static const char digits[] = "0123456789abcdef";
    const char *digit;

    *key = 0;
    for (int i = 0; i < 16; i++) {
        if (!text[i] || !(digit = strchr(digits, text[i])))
            return 0;
        *key = *key << 4 | (uint64_t)(digit - digits);
    }
    return !text[16];
}

/* One number of a PPM header, after blanks and comments; -1 where there is none. */
static int header_number(const uint8_t **at, const uint8_t *end)
{
    const uint8_t *p = *at;
    int value = -1;

    for (int comment = 0; p < end && (comment || *p == '#' || *p == ' ' || (*p >= '\t' && *p <= '\r')); p++)
        comment = (comment || *p == '#') && *p != '\n';
    for (; p < end && *p >= '0' && *p <= '9' && value < 1 << 24; p++)
        value = (value < 0 ? 0 : value) * 10 + (*p - '0');
    *at = p;
    return value;
}

/* Pixels of a PPM (P6) or PGM (P5) file of the right size; NULL for anything else. */
static const uint8_t *pnm_pixels(const uint8_t *data, size_t length)
{
    static const char *const magic[4] = {[1] = "P5", [3] = "P6"};
    const uint8_t *p = data + 2, *end = data + length;

    if (length < 2 || INTCERT_CHANNELS > 3 || !magic[INTCERT_CHANNELS] || memcmp(data, magic[INTCERT_CHANNELS], 2))
        return NULL;
    if (header_number(&p, end) != INTCERT_WIDTH || header_number(&p, end) != INTCERT_HEIGHT ||
        header_number(&p, end) != 255 || end - p != 1 + INTCERT_IMAGE_BYTES)
        return NULL;
    return p + 1;
}

static int read_image(const char *path, const uint8_t **image)
{
    char needed[MAX_DECIMAL + 1];
    size_t length = 0;
    ssize_t part = 0;
    int descriptor = open(path, O_RDONLY);

    if (descriptor >= 0)
        while (length < sizeof file && (part = read(descriptor, file + length, sizeof file - length)) > 0)
            length += (size_t)part;
    if (descriptor < 0 || part < 0)
        return REFUSE(path, " cannot be read; give a file with an image");
    close(descriptor);
    *image = length == INTCERT_IMAGE_BYTES ? file : pnm_pixels(file, length);
    if (!*image)
        return REFUSE(path, " is not an image of " INTCERT_SHAPE "; give ", decimal(INTCERT_IMAGE_BYTES, needed),
                      " bytes (height, width, channels), or a binary PPM or PGM file of that size");
    return 0;
}

static int parse_arguments(char **words)
{
    const struct {
        const char *name, **value;
    } known[] = {
        {"--run-key", &options.run_key}, {"--key", &options.key},     {"--idx", &options.idx},
        {"--label", &options.label},     {"--first", &options.first}, {"--n", &options.n},
    };
    const size_t count = sizeof known / sizeof *known;

    for (size_t i; *words; words++) {
        for (i = 0; i < count && strcmp(*words, known[i].name); i++)
            ;
        if (i < count) {
            if (!words[1])
                return REFUSE(*words, " needs a value");
            *known[i].value = *++words;
        } else if (strcmp(*words, "--ledger") == 0)
            options.ledger = 1;
        else if (**words == '-' && (*words)[1])
            return REFUSE("unknown option ", *words, "; --help lists them");
        else if (options.image)
            return REFUSE("one image at a time, not ", options.image, " and ", *words);
        else
            options.image = *words;
    }
    if (!options.image)
        return REFUSE("no image; give a file, or --help");
    if (options.key && options.run_key)
        return REFUSE("both --key and --run-key; give one of them");
    if (options.run_key && !options.idx)
        return REFUSE("--run-key needs --idx, the image's position in its data set");
    if (!options.first != !options.n)
        return REFUSE("--first and --n belong together; give both, or neither to certify");
    if (options.n && !options.key && !options.run_key)
        return REFUSE("--first and --n need --key or --run-key");
    if (options.ledger && (options.n || !options.idx || !options.label))
        return REFUSE("--ledger needs --idx and --label, and no --first and --n");
    return 0;
}

static int find_key(uint64_t idx, uint64_t *key)
{
    const char *given = options.key ? options.key : options.run_key;

    if (!given)
        return getrandom(key, sizeof *key, 0) == sizeof *key ? 0 : REFUSE("no entropy for a key; give --key");
    if (!parse_key(given, key))
        return REFUSE(given, " is not a key; give 16 hexadecimal digits in lower case");
    if (options.run_key)
        *key = intcert_image_key(*key, idx);
    return 0;
}

static void print_certificate(const struct intcert_certificate *certificate, uint64_t key)
{
    int predict = certificate->predict;

    fputs("predict\t", stdout);
    if (predict == INTCERT_ABSTAIN)
        fputs("ABSTAIN", stdout);
    else
        print_number(predict);
    if (predict != INTCERT_ABSTAIN && class_names[predict]) {
        fputs(" ", stdout);
        fputs(class_names[predict], stdout);
    }
    fputs("\nradius\t", stdout);
    print_radius(certificate->sqradius);
    fputs("\nsqradius\t", stdout);
    print_number(certificate->sqradius);
    fputs("\nsamples\t", stdout);
    print_number(INTCERT_N0);
    fputs("+", stdout);
    print_number(certificate->samples);
    fputs("\ncounts\t", stdout);
    print_counts(certificate->counts);
    fputs("\nkey\t", stdout);
    print_key(key);
    fputs("\n", stdout);
}

static void print_device(void)
{
    char name[128];
    struct utsname system;
    ssize_t length = -1;
    int descriptor = open("/proc/device-tree/model", O_RDONLY);

    if (descriptor >= 0) {
        length = read(descriptor, name, sizeof name - 1);
        close(descriptor);
    }
    if (length <= 0 && uname(&system) == 0) {
        length = (ssize_t)strlen(system.machine);
        memcpy(name, system.machine, (size_t)length);
    }
    for (ssize_t i = 0; i < length && name[i]; i++)
        fputc(name[i] < ' ' || name[i] == 0x7f ? ' ' : name[i], stdout);
}

static void print_row(const struct intcert_certificate *certificate, uint64_t key, uint64_t idx, uint64_t label,
                      const uint8_t *image, uint64_t milliseconds)
{
    char digest[INTCERT_DIGEST];

    print_number((int64_t)idx);
    fputs("\t", stdout);
    print_number((int64_t)label);
    fputs("\t", stdout);
    print_number(certificate->predict);
    fputs("\t", stdout);
    print_radius(certificate->sqradius);
    fputs(certificate->predict == (int64_t)label ? "\t1\t" : "\t0\t", stdout);
    print_fraction(milliseconds, 3);
    fputs("\t", stdout);
    print_number(certificate->sqradius);
    fputs("\t", stdout);
    intcert_image_digest(image, digest);
    fputs(digest, stdout);
    fputs("\t", stdout);
    print_number(INTCERT_N0);
    fputs("+", stdout);
    print_number(certificate->samples);
    fputs("\t", stdout);
    print_counts(certificate->counts);
    fputs("\t" INTCERT_RULE "\t" INTCERT_ALPHA "\t" INTCERT_SIGMA "\t", stdout);
    print_key(key);
    fputs("\t" INTCERT_GRAPH "\t" INTCERT_NOISE "\t" INTCERT_TARGET "\t", stdout);
    print_device();
    fputs("\n", stdout);
}

static uint64_t milliseconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int main(int words, char **word)
{
    static struct intcert_certificate certificate;
    static int32_t counts[INTCERT_CLASSES];
    uint64_t idx = 0, label = 0, first = 0, n = 0, key, begin;
    const uint8_t *image;
    const char *missing;
    int code;

    if (words == 2 && strcmp(word[1], "--help") == 0) {
        fputs("usage: ", stdout);
        fputs(word[0], stdout);
        fputs(usage, stdout);
        return 0;
    }
    if (words == 2 && strcmp(word[1], "--header") == 0) {
        fputs(header, stdout);
        return 0;
    }
    if ((code = parse_arguments(word + 1)))
        return code;
    if (options.idx && !parse_decimal(options.idx, INT64_MAX, &idx))
        return REFUSE("--idx ", options.idx, " is not a position; give an integer from 0");
    if (options.label && !parse_decimal(options.label, INTCERT_CLASSES - 1, &label))
        return REFUSE("--label ", options.label, " is not a class of this model; give its number");
    if (options.first && !parse_decimal(options.first, INT64_MAX / 2, &first))
        return REFUSE("--first ", options.first, " is not a sample number; give an integer from 0");
    if (options.n && (!parse_decimal(options.n, INT32_MAX, &n) || n == 0))
        return REFUSE("--n ", options.n, " is not a number of samples; give an integer from 1 to 2147483647");
    if ((code = find_key(idx, &key)) || (code = read_image(options.image, &image)))
        return code;
    if (!options.n && INTCERT_N == 0)
        return REFUSE("there is no certificate table inside; compile the model with --n, or give --first and --n");
    if ((missing = intcert_missing_instructions()))
        return fail(WRONG_PROCESSOR, (const char *const[]){"this processor, or its system, lacks ", missing,
                                                           ", which a program for " INTCERT_TARGET
                                                           " needs; compile the model for another target",
                                                           NULL});
    if (options.n) {
        intcert_count(image, key, (int64_t)first, (int64_t)n, counts);
        print_counts(counts);
        fputs("\n", stdout);
    } else {
        begin = milliseconds_now();
        if (intcert_certify(image, key, &certificate) != INTCERT_OK)
            return fail(WRONG_PROCESSOR, (const char *const[]){"samples were lost; this machine computes wrongly", NULL});
        if (options.ledger)
            print_row(&certificate, key, idx, label, image, milliseconds_now() - begin);
        else
            print_certificate(&certificate, key);
    }
    return fflush(stdout) == 0 ? 0 : REFUSE("the result cannot be written");
}
