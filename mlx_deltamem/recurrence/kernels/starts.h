// From what each stretch of tokens makes of a row (maps [B, N, HEADS, RANK, RANK + 1, RANK], see tokens.h), the states
// before each stretch, starts [B, N, HEADS, RANK, RANK], and after the last, new_state [B, HEADS, RANK, RANK].
// All float32; one thread has one row of one head's state.
const int chunks = maps_shape[1];
const unsigned lane = DELTA_THREAD(thread_position_in_grid);
const int row = lane % RANK;
const int head = lane / RANK % HEADS;
const int sequence = lane / (RANK * HEADS);
if (sequence >= maps_shape[0]) {
  return;  // CUDA rounds the number of threads up.
}

float current[RANK];
DELTA_UNROLL
for (int j = 0; j < RANK; ++j) {
  current[j] = state[(size_t)lane * RANK + j];
}
for (int chunk = 0; chunk < chunks; ++chunk) {
  const size_t at = ((size_t)(sequence * chunks + chunk) * HEADS + head) * RANK + row;
  const size_t images = at * (RANK + 1) * RANK;
  float next[RANK];
  DELTA_UNROLL
  for (int j = 0; j < RANK; ++j) {
    starts[at * RANK + j] = current[j];
    next[j] = maps[images + RANK * RANK + j];
  }
  DELTA_UNROLL
  for (int i = 0; i < RANK; ++i) {
    DELTA_UNROLL
    for (int j = 0; j < RANK; ++j) {
      next[j] += current[i] * maps[images + i * RANK + j];
    }
  }
  DELTA_UNROLL
  for (int j = 0; j < RANK; ++j) {
    current[j] = next[j];
  }
}
DELTA_UNROLL
for (int j = 0; j < RANK; ++j) {
  new_state[(size_t)lane * RANK + j] = current[j];
}
