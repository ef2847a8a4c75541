// SPDX-License-Identifier: GPL-3.0-or-later
// Cross and norm terms of the log-likelihood; the slice lives in registers only.
// One block per candidate and tile of TILE shifts: threads stride over the pixels, each with TILE + 1 partial sums, which
// the block then adds up in shared memory. Candidates of one image follow each other, so that its pixels stay in cache.
#include "common.cuh"

#ifndef TILE
#define TILE 8
#endif

KERNEL void RESIDENT(8) score_candidates(const C32 *__restrict__ volume, int c, const float *__restrict__ rotations,
                             const int *__restrict__ owner, const C32 *__restrict__ images,
                             const float *__restrict__ ctf2, const float *__restrict__ kx,
                             const float *__restrict__ ky, int pixels, int shifts, float padding,
                             float *__restrict__ cross, float *__restrict__ norm) {
    __shared__ float partial[(TILE + 1) * THREADS];
    const size_t candidate = blockIdx.x, image = owner[candidate];
    const int first = blockIdx.y * TILE, tile = shifts - first < TILE ? shifts - first : TILE;
    const C32 *shifted = images + (image * shifts + first) * pixels;
    const float *ctf2_row = ctf2 + image * pixels;

    float sums[TILE + 1];  // the last one is the norm
#pragma unroll
    for (int t = 0; t <= TILE; ++t) sums[t] = 0.f;
    for (int pixel = threadIdx.x; pixel < pixels; pixel += THREADS) {
        const Position v = pixel_position(rotations + 9 * candidate, kx[pixel], ky[pixel], padding);
        const C32 slice = interpolate(volume, c, v);
#pragma unroll
        for (int t = 0; t < TILE; ++t)
            if (t < tile) {
                const C32 x = shifted[(size_t)t * pixels + pixel];
                sums[t] += x.re * slice.re + x.im * slice.im;
            }
        sums[TILE] += ctf2_row[pixel] * (slice.re * slice.re + slice.im * slice.im);
    }

#pragma unroll
    for (int t = 0; t <= TILE; ++t) partial[t * THREADS + threadIdx.x] = sums[t];
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < (TILE + 1) * half; i += THREADS) {
            const int lane = (i / half) * THREADS + i % half;
            partial[lane] += partial[lane + half];
        }
    }
    __syncthreads();
    for (int t = threadIdx.x; t < tile; t += THREADS) cross[candidate * shifts + first + t] = partial[t * THREADS];
    if (threadIdx.x == 0 && first == 0) norm[candidate] = partial[TILE * THREADS];
}
