// SPDX-License-Identifier: GPL-3.0-or-later
// Sum of the accumulators over a point group: one thread per voxel of the result.
#include "common.cuh"

KERNEL void symmetrise(const C32 *__restrict__ data, const float *__restrict__ weight, int c,
                       const float *__restrict__ matrices, int order, C32 *__restrict__ new_data,
                       float *__restrict__ new_weight) {
    const size_t voxel = (size_t)blockIdx.x * THREADS + threadIdx.x;
    const size_t row = voxel / (c + 1);
    const int side = 2 * c + 1;
    if (row >= (size_t)side * side) return;
    const int ix = (int)(voxel % (c + 1)), iy = (int)(row % side) - c, iz = (int)(row / side) - c;

    C32 sum = {0.f, 0.f};
    float weight_sum = 0.f;
    const long long radius = c > 2 ? c - 2 : 0;
    if ((long long)ix * ix + (long long)iy * iy + (long long)iz * iz <= radius * radius) {
        const float x = (float)ix, y = (float)iy, z = (float)iz;
        for (int g = 0; g < order; ++g) {
            const float *m = matrices + 9 * g;
            const Position v = half_space(m[0] * x + m[1] * y + m[2] * z, m[3] * x + m[4] * y + m[5] * z,
                                          m[6] * x + m[7] * y + m[8] * z);
            const C32 value = interpolate(data, c, v);
            sum.re += value.re;
            sum.im += value.im;
            weight_sum += interpolate(weight, c, v);
        }
    }
    new_data[voxel] = sum;
    new_weight[voxel] = weight_sum;
}
