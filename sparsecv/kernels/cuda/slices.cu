// SPDX-License-Identifier: GPL-3.0-or-later
// Central slices of a Fourier volume: one block per candidate and THREADS pixels.
#include "common.cuh"

KERNEL void extract_slices(const C32 *__restrict__ volume, int c, const float *__restrict__ rotations,
                           const float *__restrict__ kx, const float *__restrict__ ky, int pixels, float padding,
                           C32 *__restrict__ slices) {
    const int pixel = blockIdx.y * THREADS + threadIdx.x;
    if (pixel >= pixels) return;
    const size_t candidate = blockIdx.x;
    const Position v = pixel_position(rotations + 9 * candidate, kx[pixel], ky[pixel], padding);
    slices[candidate * pixels + pixel] = interpolate(volume, c, v);
}
