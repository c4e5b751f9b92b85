// The state at the start of each chunk of tokens, from the maps of the chunks (see tokens.h).
//
// Inputs:  maps [B, N, HEADS, RANK, RANK + 1, RANK], state [B, HEADS, RANK, RANK].
// Outputs: starts [B, N, HEADS, RANK, RANK], the states at the start of the chunks; new_state [B, HEADS, RANK, RANK],
//          the states after the last chunk. All arrays are float32.
//
// One thread keeps one row of the state of one head in registers.
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
