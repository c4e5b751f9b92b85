// Names for the parts of Metal and CUDA that differ. Apart from these names, the sources of the kernels are plain C++
// that both languages share. They have no helper functions, because a pointer to an argument has another type where MLX
// passes the argument as a constant. They use only floats and integers of 32 and 64 bits.
#if defined(__METAL_VERSION__)
#define DELTA_THREAD(position) (position.x)
#define DELTA_TANH(x) metal::precise::tanh(x)
#define DELTA_EXP(x) metal::precise::exp(x)
#define DELTA_SQRT(x) metal::precise::sqrt(x)
#define DELTA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DELTA_THREAD(position) (blockIdx.x * blockDim.x + threadIdx.x)
#define DELTA_TANH(x) tanhf(x)
#define DELTA_EXP(x) expf(x)
#define DELTA_SQRT(x) sqrtf(x)
#define DELTA_UNROLL _Pragma("unroll")
#endif
