// SPDX-License-Identifier: GPL-3.0-or-later
// Backprojection without atomic additions to memory: one block per tile of EDGE^3 voxels, whose sums stay in registers.
// The block goes through all candidates, lists those whose slice comes near the tile, brings the pixels of some of them
// that can reach it into shared memory, and each thread adds to its own voxels what the pixels around them deposit there.
// Every sum is made in the order of the candidates: two runs agree to the last bit.
#include "common.cuh"

#ifndef GAUSSIAN
#define GAUSSIAN 0  // 1: 27 voxels around the nearest, weighted by exp(-d^2 / 2); 0: trilinear
#endif
#define EDGE 8                                  // voxels of a tile along an axis
#define OWN (EDGE * EDGE * EDGE / THREADS)      // voxels of a thread
#define PATCH 10                                // pixels along an axis that can reach a tile, from padding 2 on
#define PIXELS (PATCH * PATCH)
#define SLICES 4                                // whose pixels are in shared memory at once
#define SQRT3 1.7320508f
static_assert(THREADS % (EDGE * EDGE) == 0, "threads are whole layers of a tile");
#define SPREAD (GAUSSIAN ? 1.5f : 1.f)          // of a pixel, along an axis

struct Pixel {
    Deposit deposit;  // at (kx, ky), which is the mate of the pixel that the image holds where sign < 0
    int sign;         // 0: there is none
};

DEVICE float dot(const float *__restrict__ row, float x, float y, float z) { return row[0] * x + row[1] * y + row[2] * z; }

// Coefficient of a pixel at p for the voxel (x, y, z): what backproject.cu gives it.
DEVICE float coefficient(Position p, float x, float y, float z) {
    const float dx = p.x - x, dy = p.y - y, dz = p.z - z;
#if GAUSSIAN
    const bool is_near = fabsf(rintf(p.x) - x) <= 1.f && fabsf(rintf(p.y) - y) <= 1.f && fabsf(rintf(p.z) - z) <= 1.f;
    return is_near ? expf(-0.5f * dx * dx) * expf(-0.5f * dy * dy) * expf(-0.5f * dz * dz) : 0.f;
#else
    return fmaxf(1.f - fabsf(dx), 0.f) * fmaxf(1.f - fabsf(dy), 0.f) * fmaxf(1.f - fabsf(dz), 0.f);
#endif
}

// Adds to the sums of a voxel the pixels of one slice around it.
DEVICE void add_pixels(const Pixel *__restrict__ patch, const int *__restrict__ corner,
                       const float *__restrict__ rotation, float padding, float x, float y, float z, Deposit &sums) {
    const float farthest = SPREAD * SQRT3;
    if (fabsf(dot(rotation + 6, x, y, z)) > farthest) return;
    const float u = dot(rotation, x, y, z) / padding, v = dot(rotation + 3, x, y, z) / padding, r = farthest / padding;
    const int left = (int)ceilf(u - r), right = (int)floorf(u + r), top = (int)floorf(v + r);
#pragma unroll 1
    for (int ky = (int)ceilf(v - r); ky <= top; ++ky)
#pragma unroll 1
        for (int kx = left; kx <= right; ++kx) {
            const Pixel pixel = patch[(ky - corner[1]) * PATCH + kx - corner[0]];
            const Position p = plane_position(rotation, (float)kx, (float)ky, padding);
            // Pixels with x < 0 count as their mates, whose other side of the plane x = 0 is added when the sums are
            // completed; what those spread beyond that plane is stored at the mate's place, x > 0.
            const bool is_here = p.x > 0.f || (p.x == 0.f && pixel.sign > 0) || x > 0.f;
            if (pixel.sign == 0 || !is_here) continue;
            const float g = coefficient(p, x, y, z);
            sums.value.re += g * pixel.deposit.value.re;
            sums.value.im += g * pixel.deposit.value.im;
            sums.weight += g * pixel.deposit.weight;
        }
}

// table (2 radius + 1)^2: for each (kx, ky) the number of its pixel in the list, from 1, negative where the list has its
// mate, 0 where it has neither. active: candidates that have any weight. disc: the longest (kx, ky).
KERNEL void RESIDENT(8) gather(const C32 *__restrict__ images, const float *__restrict__ ctf2,
                               const float *__restrict__ weights, const float *__restrict__ rotations,
                               const int *__restrict__ owner, const int *__restrict__ active,
                               const int *__restrict__ table, int radius, float disc, int candidates, int pixels,
                               int shifts, float padding, int c, C32 *__restrict__ data, float *__restrict__ weight) {
    __shared__ Pixel patch[SLICES * PIXELS];
    __shared__ float matrix[SLICES * 9];
    __shared__ int corner[SLICES * 2];
    __shared__ int listed[THREADS];
    __shared__ unsigned marks[THREADS / 32];
    const int across = c / EDGE + 1, along = 2 * c / EDGE + 1, tile = blockIdx.x, thread = threadIdx.x;
    const int x0 = tile % across * EDGE, y0 = tile / across % along * EDGE - c, z0 = tile / (across * along) * EDGE - c;
    const float middle = 0.5f * (EDGE - 1), cx = x0 + middle, cy = y0 + middle, cz = z0 + middle;
    const float reach = (middle + SPREAD) * SQRT3, outermost = padding * disc + reach;
    if (cx * cx + cy * cy + cz * cz > outermost * outermost) return;  // the whole block

    // Voxels of a thread stand above each other.
    const float x = x0 + thread % EDGE, y = y0 + thread / EDGE % EDGE, z = z0 + thread / (EDGE * EDGE);
    Deposit sums[OWN];
#pragma unroll
    for (int i = 0; i < OWN; ++i) sums[i] = Deposit{{0.f, 0.f}, 0.f};
    for (int first = 0; first < candidates; first += THREADS) {
        if (thread < THREADS / 32) marks[thread] = 0;
        __syncthreads();
        const int own = first + thread;
        const bool is_near = own < candidates && active[own] != 0 &&
                             fabsf(dot(rotations + 9 * (size_t)own + 6, cx, cy, cz)) <= reach;
        if (is_near) atomicAdd(&marks[thread / 32], 1u << thread % 32);  // each its own bit: the order does not matter
        __syncthreads();
        int place = 0, count = 0;
        for (int word = 0; word < THREADS / 32; ++word) {
            if (word == thread / 32) place = count + __popc(marks[word] & ((1u << thread % 32) - 1u));
            count += __popc(marks[word]);
        }
        if (is_near) listed[place] = own;
        __syncthreads();
        for (int done = 0; done < count; done += SLICES) {
            const int slices = count - done < SLICES ? count - done : SLICES;
            if (thread < 9 * slices) matrix[thread] = rotations[9 * (size_t)listed[done + thread / 9] + thread % 9];
            if (thread < 2 * slices) {
                const float *row = rotations + 9 * (size_t)listed[done + thread / 2] + 3 * (thread % 2);
                corner[thread] = (int)floorf(dot(row, cx, cy, cz) / padding) - (PATCH / 2 - 1);
            }
            __syncthreads();
#pragma unroll 1
            for (int i = thread; i < slices * PIXELS; i += THREADS) {
                const int slice = i / PIXELS, kx = corner[2 * slice] + i % PATCH;
                const int ky = corner[2 * slice + 1] + i / PATCH % PATCH, side = 2 * radius + 1;
                const bool is_inside = kx >= -radius && kx <= radius && ky >= -radius && ky <= radius;
                const int entry = is_inside ? table[(ky + radius) * side + kx + radius] : 0;
                Pixel pixel = {{{0.f, 0.f}, 0.f}, entry};
                if (entry != 0) {
                    const size_t candidate = listed[done + slice], image = owner[candidate];
                    pixel.deposit = pixel_deposit(images + image * shifts * pixels, ctf2 + image * pixels,
                                                  weights + candidate * shifts, shifts, pixels,
                                                  (entry > 0 ? entry : -entry) - 1);
                    if (entry < 0) pixel.deposit.value.im = -pixel.deposit.value.im;
                }
                patch[i] = pixel;
            }
            __syncthreads();
#pragma unroll 1  // the registers of a thread hold its sums
            for (int slice = 0; slice < slices; ++slice)
#pragma unroll
                for (int i = 0; i < OWN; ++i)
                    add_pixels(patch + slice * PIXELS, corner + 2 * slice, matrix + 9 * slice, padding, x, y,
                               z + i * (THREADS / (EDGE * EDGE)), sums[i]);
            __syncthreads();
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int own = (int)z + i * (THREADS / (EDGE * EDGE));
        if (x > c || y > c || own > c) continue;
        const size_t voxel = voxel_index(c, (int)x, (int)y, own);
        data[voxel].re += sums[i].value.re;
        data[voxel].im += sums[i].value.im;
        weight[voxel] += sums[i].weight;
    }
}
