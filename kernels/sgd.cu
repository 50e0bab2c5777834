// One step of gradient descent, for all parameters of a network in one launch.
//
//   torch:              g = grad + decay w;  v = momentum v + (1 - dampening) g
//                       w = w - lr v,   with nesterov   w = w - lr (g + momentum v)
//   paper (section 5):  v = momentum v - lr (decay w + grad);  w = w + v
//
// Three numbers in and two out for a handful of additions: 20 bytes per element, 1.22 GB for the
// paper's 60,965,224 parameters. Memory decides; what can be lost is time between launches, and in
// kernels too small to fill the GPU: of the paper's 16 parameters the smallest is a bias of 96. So
// a table lists the parameters, each with its own rates, and one grid runs over all of them: every
// block looks up whose elements it has.
//
// The table lies in memory, not among the arguments. So a recorded CUDA graph, which repeats a
// launch with the same arguments, sees a new learning rate as soon as the table is filled anew.
//
// If `halted` is given and not 0, nothing is touched: the host, which has not seen yet that a
// gradient was not finite, shall find the weights from before.
#include "four.cuh"

constexpr int THREADS = 256;
constexpr int ROUNDS = 4;                      // a thread has four times four elements
constexpr int CHUNK = THREADS * 4 * ROUNDS;  // elements of one block

// One parameter. Its Python twin in tinyalex/backends/cuda/sgd.py has the same fields.
template <class T>
struct Piece {
  T* param;
  const T* grad;
  T* velocity;  // null: none is kept, and then momentum is 0 and share is 1
  T lr, momentum;
  T share;  // 1 - dampening
  T decay;
  int count;        // elements
  int first_block;  // the blocks of the pieces follow one another
  int nesterov, paper;
};

template <class T>
__device__ __forceinline__ void update(const Piece<T>& piece, T& w, T g, T& v) {
  g += piece.decay * w;
  if (piece.paper) {
    v = piece.momentum * v - piece.lr * g;
    w += v;
  } else {
    v = piece.momentum * v + piece.share * g;
    w -= piece.lr * (piece.nesterov ? g + piece.momentum * v : v);
  }
}

// The piece that has this block: the last of those that begin with it or before it.
template <class T>
__device__ __forceinline__ Piece<T> own_piece(const Piece<T>* table, int pieces) {
  int low = 0, high = pieces - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table[middle].first_block <= static_cast<int>(blockIdx.x))
      low = middle;
    else
      high = middle - 1;
  }
  return table[low];
}

KERNEL_FOR(float, double) __launch_bounds__(THREADS)
sgd_steps(const unsigned long long* table, int pieces, const int* halted) {
  if (halted && *halted) return;
  const Piece<T> piece = own_piece(reinterpret_cast<const Piece<T>*>(table), pieces);
  unsigned first = (blockIdx.x - piece.first_block) * CHUNK + 4 * threadIdx.x;
  const unsigned count = piece.count;
  for (int round = 0; round < ROUNDS && first < count; ++round, first += 4 * THREADS) {
    Four<T> w = load_four(piece.param, first, count);
    const Four<T> g = load_four(piece.grad, first, count);
    Four<T> v = {};
    if (piece.velocity) v = load_four(piece.velocity, first, count);
#pragma unroll
    for (int i = 0; i < 4; ++i) update(piece, w.at[i], g.at[i], v.at[i]);
    store_four(piece.param, first, count, w);
    if (piece.velocity) store_four(piece.velocity, first, count, v);
  }
}
