// SPDX-License-Identifier: GPL-3.0-or-later
// Backprojection: one block per candidate and THREADS pixels; each thread sums its pixel over the shifts and adds it to the
// neighbouring voxels with float atomics, so that the order of additions, and the last bits, differ between runs.
#include "common.cuh"

#ifdef CURVED  // each image has a slice of its own curvature: another build, so that flat slices do without
#define BENDS const float *__restrict__ bends,
#define POSITION(rotation, kx, ky) curved_position(rotation, kx, ky, bends[image], padding)
#else
#define BENDS
#define POSITION(rotation, kx, ky) pixel_position(rotation, kx, ky, padding)
#endif

DEVICE void add_voxel(C32 *__restrict__ data, float *__restrict__ weight, size_t voxel, float g, Deposit deposit) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    // Both parts in one operation on memory, each part atomic: two of them for a voxel in place of three. Nobody waits
    // for the old value, as might be with atomicAdd on a float2.
    asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(data + voxel)),
                 "f"(g * deposit.value.re), "f"(g * deposit.value.im)
                 : "memory");
#else
    atomicAdd(&data[voxel].re, g * deposit.value.re);
    atomicAdd(&data[voxel].im, g * deposit.value.im);
#endif
    atomicAdd(&weight[voxel], g * deposit.weight);
}

KERNEL void backproject_trilinear(const C32 *__restrict__ images, const float *__restrict__ ctf2,
                                  const float *__restrict__ weights, const float *__restrict__ rotations,
                                  const int *__restrict__ owner, BENDS const float *__restrict__ kx,
                                  const float *__restrict__ ky, int pixels, int shifts, float padding, int c,
                                  C32 *__restrict__ data, float *__restrict__ weight) {
    const size_t candidate = blockIdx.x, image = owner[candidate];
    const int pixel = blockIdx.y * THREADS + threadIdx.x;
    const float *shift_weights = weights + candidate * shifts;
    if (pixel >= pixels || is_empty(shift_weights, shifts)) return;
    const Position v = POSITION(rotations + 9 * candidate, kx[pixel], ky[pixel]);
    Deposit deposit = pixel_deposit(images + image * shifts * pixels, ctf2 + image * pixels, shift_weights, shifts, pixels, pixel);
    if (v.flipped) deposit.value.im = -deposit.value.im;

    const float x0 = floorf(v.x), y0 = floorf(v.y), z0 = floorf(v.z);
    const float fx = v.x - x0, fy = v.y - y0, fz = v.z - z0;
    const size_t corner = voxel_index(c, (int)x0, (int)y0, (int)z0);
    const int row = c + 1, plane = (2 * c + 1) * (c + 1);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
        const int dx = n & 1, dy = (n >> 1) & 1, dz = n >> 2;
        const float g = (dx ? fx : 1.f - fx) * (dy ? fy : 1.f - fy) * (dz ? fz : 1.f - fz);
        add_voxel(data, weight, corner + dz * plane + dy * row + dx, g, deposit);
    }
}

KERNEL void backproject_gaussian(const C32 *__restrict__ images, const float *__restrict__ ctf2,
                                 const float *__restrict__ weights, const float *__restrict__ rotations,
                                 const int *__restrict__ owner, BENDS const float *__restrict__ kx,
                                 const float *__restrict__ ky, int pixels, int shifts, float padding, int c,
                                 C32 *__restrict__ data, float *__restrict__ weight) {
    const size_t candidate = blockIdx.x, image = owner[candidate];
    const int pixel = blockIdx.y * THREADS + threadIdx.x;
    const float *shift_weights = weights + candidate * shifts;
    if (pixel >= pixels || is_empty(shift_weights, shifts)) return;
    const Position v = POSITION(rotations + 9 * candidate, kx[pixel], ky[pixel]);
    Deposit deposit = pixel_deposit(images + image * shifts * pixels, ctf2 + image * pixels, shift_weights, shifts, pixels, pixel);
    if (v.flipped) deposit.value.im = -deposit.value.im;

    const float xn = rintf(v.x), yn = rintf(v.y), zn = rintf(v.z);
    float gx[3], gy[3], gz[3];  // the Gaussian is separable: 9 exponentials for 27 voxels
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const float dx = v.x - xn - (i - 1), dy = v.y - yn - (i - 1), dz = v.z - zn - (i - 1);
        gx[i] = expf(-0.5f * dx * dx);
        gy[i] = expf(-0.5f * dy * dy);
        gz[i] = expf(-0.5f * dz * dz);
    }
    const Deposit mate = {{deposit.value.re, -deposit.value.im}, deposit.weight};
#pragma unroll
    for (int k = 0; k < 3; ++k)
#pragma unroll
        for (int j = 0; j < 3; ++j)
#pragma unroll
            for (int i = 0; i < 3; ++i) {
                const int x = (int)xn + i - 1, y = (int)yn + j - 1, z = (int)zn + k - 1;
                const bool beyond = x < 0;  // the neighbour at x = -1 is stored as its mate
                const size_t voxel = beyond ? voxel_index(c, -x, -y, -z) : voxel_index(c, x, y, z);
                add_voxel(data, weight, voxel, gx[i] * gy[j] * gz[k], beyond ? mate : deposit);
            }
}
