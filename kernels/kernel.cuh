// A kernel for several types T of its numbers, launched by name: relu<float>.
//
// The types in brackets are all that there are: the loader (launch.py) reads them there, compiles
// the kernel for each, and holds arguments against T*.
#pragma once
#define KERNEL_FOR(...) template <class T> __global__ void
