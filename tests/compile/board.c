/* Runs a compiled network where there is neither Python nor TVM: the plain functions behind a library's entry points.
 *
 *   board logits N < header, constants, int16[N, H, W, C] > int32[N, classes]
 *   board counts KEY FIRST N < header, constants, uint8[H, W, C] > int32[ceil(N / 64), classes]
 *
 * header: int32 H, W, C, classes, bytes of constants, bytes of the arena. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* DLPack and the TVM FFI's C interface, as far as these calls need them. */
typedef struct { void *data; int32_t device_type, device_id, ndim; uint8_t code, bits; uint16_t lanes;
                 int64_t *shape, *strides; uint64_t byte_offset; } Tensor;
typedef struct { int32_t type_index; uint32_t padding; union { int64_t number; void *pointer; }; } Any;
enum { INTEGER = 1, TENSOR = 7, CPU = 1, SIGNED = 0, UNSIGNED = 1 };

int __tvm_ffi_counts_host(void *self, const Any *arguments, int32_t count, Any *result);
int __tvm_ffi_logits_host(void *self, const Any *arguments, int32_t count, Any *result);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; i++) fputs(parts[i] ? parts[i] : "", stderr);
  fputc('\n', stderr);
}

static void *bytes(size_t size) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, (size + 63) / 64 * 64)) exit(3);
  return memory;
}

static void *input(size_t size) {
  void *memory = bytes(size);
  if (fread(memory, 1, size, stdin) != size) exit(4);
  return memory;
}

static Any tensor(void *data, uint8_t code, uint8_t bits, int32_t ndim, int64_t *shape) {
  Tensor *t = calloc(1, sizeof *t);
  *t = (Tensor){.data = data, .device_type = CPU, .ndim = ndim, .code = code, .bits = bits, .lanes = 1, .shape = shape};
  return (Any){.type_index = TENSOR, .pointer = t};
}

static Any integer(const char *text) { return (Any){.type_index = INTEGER, .number = (int64_t)strtoull(text, NULL, 0)}; }

int main(int argc, char **argv) {
  int32_t *header = input(6 * sizeof *header);
  int64_t height = header[0], width = header[1], channels = header[2], classes = header[3];
  int64_t constant_bytes[] = {header[4]}, arena_bytes[] = {header[5]};
  int logits = strcmp(argv[1], "logits") == 0;
  int64_t n = strtoll(argv[argc - 1], NULL, 0), rows = logits ? n : (n + 63) / 64;
  int64_t samples[] = {n, height, width, channels}, out_shape[] = {rows, classes};
  Any constants = tensor(input(header[4]), UNSIGNED, 8, 1, constant_bytes);
  Any arena = tensor(bytes(header[5]), UNSIGNED, 8, 1, arena_bytes);
  size_t pixels = height * width * channels, results = rows * classes * sizeof(int32_t);
  Any out = tensor(memset(bytes(results), 0x55, results), SIGNED, 32, 2, out_shape), none = {0};
  int failed;
  if (logits) {
    Any x = tensor(input(n * pixels * 2), SIGNED, 16, 4, samples);
    Any arguments[] = {x, constants, out, arena};
    failed = __tvm_ffi_logits_host(NULL, arguments, 4, &none);
  } else {
    Any x = tensor(input(pixels), UNSIGNED, 8, 3, samples + 1);
    Any arguments[] = {x, integer(argv[2]), integer(argv[3]), integer(argv[4]), constants, out, arena};
    failed = __tvm_ffi_counts_host(NULL, arguments, 7, &none);
  }
  if (failed) return 1;
  return fwrite(((Tensor *)out.pointer)->data, 1, results, stdout) != results;
}
