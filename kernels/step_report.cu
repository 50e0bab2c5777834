// Results of training steps, recorded on the device: the host, which would have to wait for each
// step, reads the records of several steps at once.
//
//   report = halted, taken, loss that halted, 0,  losses[most],  hits[most]
//
// A step whose loss or whose gradients are not finite sets `halted`, and from then on nothing is
// recorded and kernels/sgd.cu updates nothing: the weights stay those from before. Of every other
// step its loss is recorded, and how many images had their highest logit, the first of equals, at
// the target.
//
// 4 bytes a logit, 0.5 MB for 128 images of 1000 classes, read by one block while there is nothing
// else to do: 10 microseconds if one multiprocessor reads 50 GB/s, an estimate. One version.
// A warp takes a row: each lane finds the best of every 32nd class, five exchanges the best of all.

constexpr int THREADS = 256;
constexpr int WARP = 32;
constexpr int WARPS = THREADS / WARP;
enum Note { HALTED, TAKEN, LOSS, LOSSES = 4 };

__device__ __forceinline__ int first_highest(const float* row, int classes) {
  const int lane = threadIdx.x % WARP;
  int best = lane;
  float highest = lane < classes ? row[lane] : 0;
  for (int c = lane + WARP; c < classes; c += WARP)
    if (row[c] > highest) highest = row[best = c];
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, highest, distance);
    const int at = __shfl_xor_sync(0xffffffffu, best, distance);
    // Lanes beyond the last class have nothing to say.
    if (at < classes && (best >= classes || other > highest || (other == highest && at < best))) {
      highest = other;
      best = at;
    }
  }
  return best;
}

// logits [rows, classes]; targets [rows]; finite: 1 where all gradients are; most: steps that fit.
extern "C" __global__ void __launch_bounds__(THREADS)
report_step(const float* loss, const float* logits, const unsigned long long* targets,
            const unsigned char* finite, int* report, int rows, int classes, int most) {
  __shared__ int hits[WARPS];
  const int warp = threadIdx.x / WARP;
  int own = 0;
  for (int row = warp; row < rows; row += WARPS)
    own += first_highest(logits + row * classes, classes) == static_cast<int>(targets[row]);
  if (threadIdx.x % WARP == 0) hits[warp] = own;
  __syncthreads();
  if (threadIdx.x != 0 || report[HALTED]) return;
  if (!*finite || !(0 * *loss == 0)) {  // 0 times NaN or infinity is NaN
    report[HALTED] = 1;
    reinterpret_cast<float*>(report)[LOSS] = *loss;
    return;
  }
  const int step = report[TAKEN];
  if (step == most) return;
  int total = 0;
  for (int i = 0; i < WARPS; ++i) total += hits[i];
  reinterpret_cast<float*>(report)[LOSSES + step] = *loss;
  report[LOSSES + most + step] = total;
  report[TAKEN] = step + 1;
}
