// What the kernels need of a GPU's language. Their sources use these names and plain C++ that Metal and CUDA share:
// no helper functions, since a pointer to an argument has another type where MLX passes it as a constant, and only 32
// and 64 bit integers and floats.
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
