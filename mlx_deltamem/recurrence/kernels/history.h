// The recurrence alone, over prepared tokens, with the state before every token kept: for training. With REVERSED it
// runs from the last token to the first, which gives the gradient of the state after every token (`token_gradients` in
// definition.py).
//
// Inputs:  state [B, HEADS, RANK, RANK]; keys, write_keys, written, keep, erase [B, T, HEADS, RANK].
// Outputs: history [B, T, HEADS, RANK, RANK], last_state [B, HEADS, RANK, RANK]. All arrays are float32.
//
// One thread keeps one row of the state of one head in registers.
const int length = keys_shape[1];
const unsigned lane = DELTA_THREAD(thread_position_in_grid);
const int row = lane % RANK;
const int head = lane / RANK % HEADS;
const int sequence = lane / (RANK * HEADS);
if (sequence >= keys_shape[0]) {
  return;  // CUDA rounds the number of threads up.
}

float current[RANK];
DELTA_UNROLL
for (int j = 0; j < RANK; ++j) {
  current[j] = state[(size_t)lane * RANK + j];
}
for (int step = 0; step < length; ++step) {
  const int t = REVERSED ? length - 1 - step : step;
  const size_t token = (((size_t)sequence * length + t) * HEADS + head) * RANK;
  float recalled = 0.0f;
  DELTA_UNROLL
  for (int j = 0; j < RANK; ++j) {
    history[(token + row) * RANK + j] = current[j];
    recalled += current[j] * keys[token + j];
  }
  const float kept = keep[token + row];
  const float erased = erase[token + row] * recalled;
  const float added = written[token + row];
  DELTA_UNROLL
  for (int j = 0; j < RANK; ++j) {
    current[j] = kept * current[j] - erased * keys[token + j] + added * write_keys[token + j];
  }
}
DELTA_UNROLL
for (int j = 0; j < RANK; ++j) {
  last_state[(size_t)lane * RANK + j] = current[j];
}
