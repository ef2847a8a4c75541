// SPDX-License-Identifier: GPL-3.0-or-later
// Filters, held-out errors and windows of non-uniform filtering; the equations are those of reference_nonuniform.py.
// Memory bandwidth is what they cost. The grid is (blocks along x, y, z): each thread has one voxel, frequency or bin.
#include "common.cuh"

DEVICE size_t index_of(int x, int y, int z, int side, int row) { return ((size_t)z * side + y) * row + x; }

// blockIdx.y and .z are the row and the plane.
KERNEL void butterworth(const C32 *__restrict__ transform, int side, int half, float inverse_cutoff, int order,
                        C32 *__restrict__ filtered) {
    const int x = (int)(blockIdx.x * THREADS + threadIdx.x), y = (int)blockIdx.y, z = (int)blockIdx.z;
    if (x >= half) return;
    const float ky = (float)(y < side - y ? y : side - y) * inverse_cutoff;
    const float kz = (float)(z < side - z ? z : side - z) * inverse_cutoff, kx = (float)x * inverse_cutoff;
    const float ratio = kx * kx + ky * ky + kz * kz;
    float power = 1.f;
    for (int i = 0; i < order; ++i) power *= ratio;
    const float gain = 1.f / sqrtf(1.f + power);
    const size_t voxel = index_of(x, y, z, side, half);
    const C32 value = transform[voxel];
    filtered[voxel] = C32{gain * value.re, gain * value.im};
}

// One thread adds up one bin, so that no atomics are needed and the order is always the same.
KERNEL void filtered_error(const float *__restrict__ first, const float *__restrict__ second,
                           const float *__restrict__ filtered1, const float *__restrict__ filtered2,
                           const float *__restrict__ weight, int side, int bin, float correction, int count,
                           float *__restrict__ errors) {
    const int bx = (int)(blockIdx.x * THREADS + threadIdx.x), by = (int)blockIdx.y, bz = (int)blockIdx.z;
    if (bx >= count) return;
    float sum = 0.f;
    for (int z = bz * bin; z < (bz + 1) * bin && z < side; ++z)
        for (int y = by * bin; y < (by + 1) * bin && y < side; ++y)
            for (int x = bx * bin; x < (bx + 1) * bin && x < side; ++x) {
                const size_t voxel = index_of(x, y, z, side, side);
                const float f1 = filtered1[voxel], f2 = filtered2[voxel];
                const float one = f1 - second[voxel], two = f2 - first[voxel], between = f1 - f2;
                sum += weight[voxel] * (one * one + two * two - correction * between * between);
            }
    errors[index_of(bx, by, bz, count, count)] = sum;
}

// Along the axis whose neighbours lie ``stride`` apart in the array.
KERNEL void window(const float *__restrict__ values, const float *__restrict__ taps, int radius, int side, int stride,
                   float *__restrict__ smoothed) {
    const int x = (int)(blockIdx.x * THREADS + threadIdx.x), y = (int)blockIdx.y, z = (int)blockIdx.z;
    if (x >= side) return;
    const size_t voxel = index_of(x, y, z, side, side);
    const int place = stride == 1 ? x : stride == side ? y : z;
    const int from = place < radius ? -place : -radius, to = side - 1 - place < radius ? side - 1 - place : radius;
    float sum = 0.f;
    for (int t = from; t <= to; ++t) sum += taps[t + radius] * values[voxel + (ptrdiff_t)t * stride];
    smoothed[voxel] = sum;
}

struct Place {
    int lower, upper;
    float part;
};

// Neighbours of a voxel among the bins' centres.
DEVICE Place place_of(int i, float bin, int count) {
    const float position = fminf(fmaxf(((float)i + 0.5f) / bin - 0.5f, 0.f), (float)(count - 1));
    const int last = count > 1 ? count - 2 : 0;
    const int lower = (int)position < last ? (int)position : last;
    return Place{lower, lower + 1 < count ? lower + 1 : count - 1, position - (float)lower};
}

KERNEL void take_better(const float *__restrict__ advantage, float bin, int count, const float *__restrict__ weight,
                        int side, int number, const float *__restrict__ value, unsigned char *__restrict__ chosen,
                        float *__restrict__ best) {
    const int x = (int)(blockIdx.x * THREADS + threadIdx.x), y = (int)blockIdx.y, z = (int)blockIdx.z;
    if (x >= side) return;
    const size_t voxel = index_of(x, y, z, side, side);
    if (!(weight[voxel] > 0.f)) return;
    const Place px = place_of(x, bin, count), py = place_of(y, bin, count), pz = place_of(z, bin, count);
    const float *a = advantage + index_of(0, py.lower, pz.lower, count, count);
    const float *b = advantage + index_of(0, py.upper, pz.lower, count, count);
    const float *c = advantage + index_of(0, py.lower, pz.upper, count, count);
    const float *d = advantage + index_of(0, py.upper, pz.upper, count, count);
    const float left = mix(mix(a[px.lower], c[px.lower], pz.part), mix(b[px.lower], d[px.lower], pz.part), py.part);
    const float right = mix(mix(a[px.upper], c[px.upper], pz.part), mix(b[px.upper], d[px.upper], pz.part), py.part);
    if (mix(left, right, px.part) < 0.f) {
        chosen[voxel] = (unsigned char)number;
        best[voxel] = value[voxel];
    }
}
