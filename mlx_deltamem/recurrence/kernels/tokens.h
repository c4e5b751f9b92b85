// The memory of one layer over the tokens of sequences: tanh, norm, gates, read, write. One thread keeps one row of the
// state of one head in registers and loops over the tokens.
//
// Inputs:  projected [B, T, P]: memory queries, keys and values (HEADS * RANK columns each), then the gates before their
//          bias: beta and, with FREE_LAMBDA, lambda. DELTA_READ needs the queries only.
//          gate_bias [gates] float32, state [B, HEADS, RANK, RANK] float32, with DELTA_MASKED mask [B, T] bool.
// Outputs: reads [B, T, HEADS * RANK], in the dtype of `projected`, and the output of the task.
//
// DELTA_TASK selects the task. Two tasks run over all tokens of a sequence:
//   DELTA_SCAN    reads and writes, starting from `state`, and outputs new_state [B, HEADS, RANK, RANK].
//   DELTA_READ    reads `state` and leaves it as it is; each token has its own threads.
// Two tasks run over N chunks of chunk_length[0] tokens side by side:
//   DELTA_MAPS    outputs maps [B, N, HEADS, RANK, RANK + 1, RANK] and no reads: for each row of the state, the RANK unit
//                 rows as the chunk changes them when it writes nothing, then the zero row as the chunk changes it.
//   DELTA_CHUNKS  reads and writes, each chunk starting from its own state: state is [B, N, HEADS, RANK, RANK].
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
  // At the end of the loop, so that the GPU can load all numbers of a token at once.
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
