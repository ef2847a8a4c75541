// SPDX-License-Identifier: GPL-3.0-or-later
// Sums over Fourier shells, in double precision, and quotients with a value for each shell.
#include "common.cuh"

#ifndef SHELLS
#define SHELLS 256  // at least the number of shells of sum_volume_shells
#endif

// One block per row and shell; the disc is sorted by shell, so that a shell is a run of pixels.
KERNEL void sum_disc_shells(const float *__restrict__ values, const int *__restrict__ offsets, int pixels, int shells,
                            double *__restrict__ sums) {
    __shared__ double partial[THREADS];
    const size_t row = blockIdx.x;
    const int shell = blockIdx.y, end = offsets[shell + 1];
    double sum = 0.;
    for (int pixel = offsets[shell] + threadIdx.x; pixel < end; pixel += THREADS) sum += values[row * pixels + pixel];
    partial[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[row * shells + shell] = partial[0];
}

// One block per plane z, with a histogram in shared memory that is added to the result at the end.
KERNEL void sum_volume_shells(const C32 *__restrict__ a, const C32 *__restrict__ b, int c, float padding, int shells,
                              double *__restrict__ sums) {
    __shared__ double histogram[3 * SHELLS];
    for (int i = threadIdx.x; i < 3 * shells; i += THREADS) histogram[i] = 0.;
    __syncthreads();
    const int z = (int)blockIdx.x - c, row = c + 1, plane = (2 * c + 1) * row;
    for (int i = threadIdx.x; i < plane; i += THREADS) {
        const int x = i % row, y = i / row - c;
        // Exact: n = |v|^2 stays below 2^24 for c < 2364, and sqrt rounds correctly.
        const int shell = (int)rintf(sqrtf((float)(x * x + y * y + z * z)) / padding);
        if (shell >= shells) continue;
        const size_t voxel = (size_t)blockIdx.x * plane + i;
        const double twice = x > 0 ? 2. : 1.;
        const double ar = a[voxel].re, ai = a[voxel].im, br = b[voxel].re, bi = b[voxel].im;
        atomicAdd(&histogram[3 * shell], twice * (ar * br + ai * bi));
        atomicAdd(&histogram[3 * shell + 1], twice * (ar * ar + ai * ai));
        atomicAdd(&histogram[3 * shell + 2], twice * (br * br + bi * bi));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 3 * shells; i += THREADS) atomicAdd(&sums[i], histogram[i]);
}

// The same for one real volume: its sum and the number of voxels of each shell.
KERNEL void sum_real_shells(const float *__restrict__ values, int c, float padding, int shells,
                            double *__restrict__ sums) {
    __shared__ double histogram[2 * SHELLS];
    for (int i = threadIdx.x; i < 2 * shells; i += THREADS) histogram[i] = 0.;
    __syncthreads();
    const int z = (int)blockIdx.x - c, row = c + 1, plane = (2 * c + 1) * row;
    for (int i = threadIdx.x; i < plane; i += THREADS) {
        const int x = i % row, y = i / row - c;
        const int shell = (int)rintf(sqrtf((float)(x * x + y * y + z * z)) / padding);
        if (shell >= shells) continue;
        const double twice = x > 0 ? 2. : 1.;
        atomicAdd(&histogram[2 * shell], twice * values[(size_t)blockIdx.x * plane + i]);
        atomicAdd(&histogram[2 * shell + 1], twice);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * shells; i += THREADS) atomicAdd(&sums[i], histogram[i]);
}

// blockIdx.y and .z are the row and the plane.
KERNEL void quotient(const C32 *__restrict__ data, const float *__restrict__ weight, int c, float padding,
                     const float *__restrict__ least, const float *__restrict__ prior, int shells, float smallest,
                     C32 *__restrict__ volume) {
    const int x = (int)(blockIdx.x * THREADS + threadIdx.x), y = (int)blockIdx.y - c, z = (int)blockIdx.z - c;
    if (x > c) return;
    const size_t voxel = voxel_index(c, x, y, z);
    const int shell = (int)rintf(sqrtf((float)(x * x + y * y + z * z)) / padding);
    C32 value = C32{0.f, 0.f};
    if (shell < shells) {
        const float gain = 1.f / fmaxf(fmaxf(weight[voxel], least[shell]) + prior[shell], smallest);
        value = C32{gain * data[voxel].re, gain * data[voxel].im};
    }
    volume[voxel] = value;
}
