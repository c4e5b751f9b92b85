// The parts of Metal that the kernels use, in C++, so that the text that MLX gives to Metal runs on a CPU.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __METAL_VERSION__ 320
#define device
#define constant

struct uint3 {
  unsigned x, y, z;
};

using float16_t = _Float16;

struct bfloat16_t {
  uint16_t bits;
  bfloat16_t() = default;
  explicit bfloat16_t(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    wide += 0x7fff + ((wide >> 16) & 1);  // round to nearest, ties to even
    bits = value == value ? wide >> 16 : 0x7fc0;
  }
  operator float() const {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

namespace metal::precise {
inline float tanh(float x) { return std::tanh(x); }
inline float exp(float x) { return std::exp(x); }
inline float sqrt(float x) { return std::sqrt(x); }
}  // namespace metal::precise
