// SPDX-License-Identifier: GPL-3.0-or-later
// Stencils and proximal steps of the sparse + TV prior; the equations are those of reference_sparse_tv.py.
// Memory bandwidth is what they cost. A block takes ROW voxels along x by ROWS rows; each thread goes up its column by
// PLANES planes and keeps in registers what the next plane needs again. What it needs of its neighbours along x and y it
// computes itself, from values in cache, so that no barrier stands between planes. Each block leaves one pair of sums:
// the result does not depend on the order in which blocks run.
#include "common.cuh"

#ifndef ROW
#define ROW 32  // divides THREADS; the threads of a warp read one piece of a row
#endif
#ifndef PLANES
#define PLANES 16
#endif
#define ROWS (THREADS / ROW)

struct Vector {
    float x, y, z;
};

// Distances, in the array, to a neighbour along each axis; 64 bits, as 3 side^3 passes 2^31 at side 895.
struct Steps {
    ptrdiff_t x, y, z;
};

// What a thread goes through: voxels (z, y, x), first <= z < end, of a volume (side, side, side).
struct Column {
    int x, y, first, end;
    size_t voxel, plane;  // index of the first voxel; voxels in a plane
    bool is_inside;       // blocks may reach beyond the volume
};

DEVICE Column own_column(int side) {
    Column own;
    own.x = (int)(blockIdx.x * ROW + threadIdx.x % ROW);
    own.y = (int)(blockIdx.y * ROWS + threadIdx.x / ROW);
    own.first = (int)blockIdx.z * PLANES;
    own.end = side - own.first < PLANES ? side : own.first + PLANES;
    own.plane = (size_t)side * side;
    own.voxel = own.first * own.plane + (size_t)own.y * side + own.x;
    own.is_inside = own.x < side && own.y < side;
    return own;
}

// Each axis closes on itself.
DEVICE ptrdiff_t step_after(int position, int side, ptrdiff_t stride) {
    return position + 1 < side ? stride : (1 - side) * stride;
}
DEVICE ptrdiff_t step_before(int position, int side, ptrdiff_t stride) {
    return position > 0 ? -stride : (side - 1) * stride;
}
DEVICE Steps steps_after(Column own, int z, int side) {
    return Steps{step_after(own.x, side, 1), step_after(own.y, side, side), step_after(z, side, (ptrdiff_t)own.plane)};
}

DEVICE float length(Vector u) { return sqrtf(u.x * u.x + u.y * u.y + u.z * u.z); }

DEVICE float soft(float w, float threshold, int positive) {
    const float kept = fmaxf(fabsf(w) - threshold, 0.f);
    return w > 0.f ? kept : positive ? 0.f : -kept;
}

// Factor that makes a vector shorter by the threshold.
DEVICE float shrinkage(Vector w, float threshold) {
    const float size = length(w);
    return size > threshold ? 1.f - threshold / size : 0.f;
}

DEVICE Vector load_vector(const float *__restrict__ w2, size_t volume, size_t voxel) {
    return Vector{w2[voxel], w2[volume + voxel], w2[2 * volume + voxel]};
}

// D x at a voxel.
DEVICE Vector difference(const float *__restrict__ x, size_t voxel, Steps after) {
    const float here = x[voxel];
    return Vector{x[voxel + after.x] - here, x[voxel + after.y] - here, x[voxel + after.z] - here};
}

// Adds up two numbers of each thread of the block and writes them into the block's column of sums (2, blocks).
DEVICE void write_block_sums(double first, double second, double *__restrict__ sums) {
    __shared__ double partial[2][THREADS];
    const unsigned thread = threadIdx.x;
    partial[0][thread] = first;
    partial[1][thread] = second;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) {
            partial[0][thread] += partial[0][thread + half];
            partial[1][thread] += partial[1][thread + half];
        }
    }
    if (thread == 0) {
        const size_t layer = (size_t)gridDim.x * gridDim.y;
        const size_t block = blockIdx.z * layer + (size_t)blockIdx.y * gridDim.x + blockIdx.x;
        sums[block] = partial[0][0];
        sums[gridDim.z * layer + block] = partial[1][0];
    }
}

// f z2 - w2 at a voxel; its threshold is step c.
DEVICE Vector reflected(const float *__restrict__ w2, const float *__restrict__ c, size_t volume, size_t voxel,
                        float step, float reflect) {
    const Vector w = load_vector(w2, volume, voxel);
    const float factor = reflect * shrinkage(w, step * c[voxel]) - 1.f;
    return Vector{factor * w.x, factor * w.y, factor * w.z};
}

KERNEL void split_step(const float *__restrict__ b, const float *__restrict__ w1, const float *__restrict__ w2,
                       const float *__restrict__ a, const float *__restrict__ c, int side, float rho1, float rho2,
                       float reflect, int positive, float *__restrict__ right_side) {
    const Column own = own_column(side);
    if (!own.is_inside) return;
    const size_t volume = own.plane * side;
    const float step1 = 1.f / rho1, step2 = 1.f / rho2;  // divided once, not at every voxel
    const ptrdiff_t left = step_before(own.x, side, 1), front = step_before(own.y, side, side);
    const ptrdiff_t under = step_before(own.first, side, (ptrdiff_t)own.plane);
    size_t voxel = own.voxel;
    float below = reflected(w2, c, volume, voxel + under, step2, reflect).z;
    for (int z = own.first; z < own.end; ++z, voxel += own.plane) {
        const Vector u = reflected(w2, c, volume, voxel, step2, reflect);
        const float before_x = reflected(w2, c, volume, voxel + left, step2, reflect).x;
        const float before_y = reflected(w2, c, volume, voxel + front, step2, reflect).y;
        const float adjoint = before_x - u.x + before_y - u.y + below - u.z;
        const float w = w1[voxel], z1 = soft(w, step1 * a[voxel], positive);
        right_side[voxel] = b[voxel] + rho1 * (reflect * z1 - w) + rho2 * adjoint;
        below = u.z;
    }
}

KERNEL void relax_step(const float *__restrict__ x, float *__restrict__ w1, float *__restrict__ w2,
                       const float *__restrict__ a, const float *__restrict__ c, int side, float rho1, float rho2,
                       float relaxation, int positive) {
    const Column own = own_column(side);
    if (!own.is_inside) return;
    const size_t volume = own.plane * side;
    const float step1 = 1.f / rho1, step2 = 1.f / rho2;
    size_t voxel = own.voxel;
    for (int z = own.first; z < own.end; ++z, voxel += own.plane) {
        const float w = w1[voxel];
        w1[voxel] = w + relaxation * (x[voxel] - soft(w, step1 * a[voxel], positive));
        const Vector step = difference(x, voxel, steps_after(own, z, side)), v = load_vector(w2, volume, voxel);
        const float factor = shrinkage(v, step2 * c[voxel]);
        w2[voxel] = v.x + relaxation * (step.x - factor * v.x);
        w2[volume + voxel] = v.y + relaxation * (step.y - factor * v.y);
        w2[2 * volume + voxel] = v.z + relaxation * (step.z - factor * v.z);
    }
}

KERNEL void sparse_prox(const float *__restrict__ w1, const float *__restrict__ a, int side, float rho1, int positive,
                        float *__restrict__ z1) {
    const size_t voxel = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (voxel < (size_t)side * side * side) z1[voxel] = soft(w1[voxel], a[voxel] / rho1, positive);
}

KERNEL void penalties(const float *__restrict__ x, const float *__restrict__ a, const float *__restrict__ c, int side,
                      double *__restrict__ sums) {
    const Column own = own_column(side);
    float sparse = 0.f, variation = 0.f;
    if (own.is_inside) {
        size_t voxel = own.voxel;
        for (int z = own.first; z < own.end; ++z, voxel += own.plane) {
            sparse += a[voxel] * fabsf(x[voxel]);
            variation += c[voxel] * length(difference(x, voxel, steps_after(own, z, side)));
        }
    }
    write_block_sums(sparse, variation, sums);
}

KERNEL void penalty_weights(const float *__restrict__ x, int side, float eps, float eps_gradient,
                            float *__restrict__ a, float *__restrict__ c) {
    const Column own = own_column(side);
    if (!own.is_inside) return;
    size_t voxel = own.voxel;
    for (int z = own.first; z < own.end; ++z, voxel += own.plane) {
        a[voxel] = 1.f / (fabsf(x[voxel]) + eps);
        c[voxel] = 1.f / (length(difference(x, voxel, steps_after(own, z, side))) + eps_gradient);
    }
}

// c u at a voxel, u the gradient of the smoothed length of D x.
DEVICE Vector smoothed(const float *__restrict__ x, const float *__restrict__ c, size_t voxel, Steps after, float mu) {
    const Vector step = difference(x, voxel, after);
    const float factor = c[voxel] / fmaxf(length(step), mu);
    return Vector{factor * step.x, factor * step.y, factor * step.z};
}

KERNEL void smoothed_variation_gradient(const float *__restrict__ x, const float *__restrict__ c, int side, float mu,
                                        float *__restrict__ gradient) {
    const Column own = own_column(side);
    if (!own.is_inside) return;
    const ptrdiff_t left = step_before(own.x, side, 1), front = step_before(own.y, side, side);
    const ptrdiff_t under = step_before(own.first, side, (ptrdiff_t)own.plane);
    Steps after = steps_after(own, own.first, side);
    size_t voxel = own.voxel;
    float below = smoothed(x, c, voxel + under, Steps{after.x, after.y, -under}, mu).z;
    for (int z = own.first; z < own.end; ++z, voxel += own.plane) {
        after.z = step_after(z, side, (ptrdiff_t)own.plane);
        const Vector u = smoothed(x, c, voxel, after, mu);
        const float before_x = smoothed(x, c, voxel + left, Steps{-left, after.y, after.z}, mu).x;
        const float before_y = smoothed(x, c, voxel + front, Steps{after.x, -front, after.z}, mu).y;
        gradient[voxel] = before_x - u.x + before_y - u.y + below - u.z;
        below = u.z;
    }
}
