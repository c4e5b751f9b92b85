// The memory of one layer over a stretch of tokens: tanh, norm, gates, read, write. One thread has one row of one
// head's state in registers and goes from token to token.
//
// projected [B, T, P]: memory queries, keys and values (HEADS * RANK columns each), then the gates before their bias:
//                      beta and, with FREE_LAMBDA, lambda. A pass that only reads needs the queries alone.
// gate_bias [gates] float32, state [B, HEADS, RANK, RANK] float32, mask [B, T] bool with DELTA_MASKED.
// reads [B, T, HEADS * RANK], in the type of `projected`.
//
// What is done is told by DELTA_TASK:
//   DELTA_SCAN    reads and writes, from `state`, and gives new_state.
//   DELTA_READ    reads the `state`, which stays as it is; each token by threads of its own.
// and over N chunks of chunk_length[0] tokens side by side:
//   DELTA_MAPS    gives what each chunk makes of a row: maps [B, N, HEADS, RANK, RANK + 1, RANK], the images of the
//                 RANK unit rows with nothing written, and of the zero row.
//   DELTA_CHUNKS  reads and writes, each chunk from its own state: state is [B, N, HEADS, RANK, RANK].
constexpr int width = HEADS * RANK;
constexpr int images = DELTA_TASK == DELTA_MAPS ? RANK + 1 : 1;

const int length = projected_shape[1];
const int columns = projected_shape[2];
#if DELTA_TASK == DELTA_SCAN
const int chunk_tokens = length;
#elif DELTA_TASK == DELTA_READ
const int chunk_tokens = 1;
#else
const int chunk_tokens = chunk_length[0];
#endif
const int chunks = (length + chunk_tokens - 1) / chunk_tokens;

const unsigned lane = DELTA_THREAD(thread_position_in_grid);
const int image = lane % images;
const int row = lane / images % RANK;
const int head = lane / (images * RANK) % HEADS;
const int chunk = lane / (images * RANK * HEADS) % chunks;
const int sequence = lane / (images * RANK * HEADS) / chunks;
if (sequence >= projected_shape[0]) {
  return;  // CUDA rounds the number of threads up.
}

float current[RANK];
#if DELTA_TASK != DELTA_MAPS
const int start = DELTA_TASK == DELTA_CHUNKS ? sequence * chunks + chunk : sequence;
const size_t state_row = ((size_t)(start * HEADS + head) * RANK + row) * RANK;
#endif
DELTA_UNROLL
for (int j = 0; j < RANK; ++j) {
#if DELTA_TASK == DELTA_MAPS
  current[j] = j == image ? 1.0f : 0.0f;
#else
  current[j] = state[state_row + j];
#endif
}

const int begin = chunk * chunk_tokens;
const int end = begin + chunk_tokens < length ? begin + chunk_tokens : length;
for (int t = begin; t < end; ++t) {
  const size_t token = (size_t)sequence * length + t;
  const size_t query = token * columns + head * RANK;
  float read = 0.0f;
#if DELTA_MASKED
  if (mask[token]) {
#endif
#if DELTA_TASK != DELTA_MAPS
    float query_size = 0.0f;
    DELTA_UNROLL
    for (int j = 0; j < RANK; ++j) {
      float x = static_cast<float>(projected[query + j]);
      if (NORMALIZE) {
        x = DELTA_TANH(x);
        query_size += x * x;
      }
      read += current[j] * x;
    }
    if (NORMALIZE) {
      const float norm = DELTA_SQRT(query_size);
      read = read / (norm > DELTA_SMALLEST_NORM ? norm : DELTA_SMALLEST_NORM);
    }
#endif
#if DELTA_TASK != DELTA_READ
    float key[RANK];
    float key_size = 0.0f;
    float recalled = 0.0f;
    DELTA_UNROLL
    for (int j = 0; j < RANK; ++j) {
      float x = static_cast<float>(projected[query + width + j]);
      if (NORMALIZE) {
        x = DELTA_TANH(x);
        key_size += x * x;
      }
      key[j] = x;
      recalled += current[j] * x;
    }
    float scale = 1.0f;
    if (NORMALIZE) {
      const float norm = DELTA_SQRT(key_size);
      scale = 1.0f / (norm > DELTA_SMALLEST_NORM ? norm : DELTA_SMALLEST_NORM);
    }
    constexpr int gates = RANKWISE ? width : HEADS;
    const int gate = RANKWISE ? head * RANK + row : head;
    const size_t column = token * columns + 3 * width + gate;
    const float beta = 1.0f / (1.0f + DELTA_EXP(-(static_cast<float>(projected[column]) + gate_bias[gate])));
    float lambda = 1.0f - beta;
    if (FREE_LAMBDA) {
      const float raw = static_cast<float>(projected[column + gates]) + gate_bias[gates + gate];
      lambda = 1.0f / (1.0f + DELTA_EXP(-raw));
    }
    const float keep = KEEPS_ALL ? 1.0f : lambda;
    const float erase = LAMBDA_OUTSIDE ? lambda * beta : beta;
    const float value = static_cast<float>(projected[query + 2 * width + row]);
    const float written = DELTA_TASK == DELTA_MAPS && image < RANK ? 0.0f : beta * value;
    const float change = (written - erase * (recalled * scale)) * scale;
    DELTA_UNROLL
    for (int j = 0; j < RANK; ++j) {
      current[j] = keep * current[j] + change * key[j];
    }
#endif
#if DELTA_MASKED
  }
#endif
#if DELTA_TASK != DELTA_MAPS
  // Last, so that all that a token needs can be loaded at once.
  reads[token * width + head * RANK + row] = static_cast<Activation>(read);
#endif
}

#if DELTA_TASK == DELTA_SCAN || DELTA_TASK == DELTA_MAPS
DELTA_UNROLL
for (int j = 0; j < RANK; ++j) {
#if DELTA_TASK == DELTA_SCAN
  new_state[(size_t)lane * RANK + j] = current[j];
#else
  maps[(size_t)lane * RANK + j] = current[j];
#endif
}
#endif
