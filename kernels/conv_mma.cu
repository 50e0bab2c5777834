// Convolution on tensor cores by `mma.sync`, the instruction of Ampere and of all GPUs after it:
// conv_forward<Tile<Tf32, 128, 128>> and its like, of float32 images.
//
// The versions for study are in conv_forward.cu, conv_input_grad.cu and conv_weight_grad.cu; these
// are the same sums, tiled for tensor cores. How: tensor_tile.cuh (main loop), tensor_precision.cuh
// (TF32 three times, TF32, bf16).
#include "conv_passes.cuh"
