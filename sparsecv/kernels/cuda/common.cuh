// SPDX-License-Identifier: GPL-3.0-or-later
// Half Fourier volumes on the device: layout, positions of slice pixels, trilinear interpolation, what pixels deposit.
// The arrays and the equations are those of reference.py.
#ifndef SPARSECV_COMMON_CUH
#define SPARSECV_COMMON_CUH

#ifndef KERNEL
#define KERNEL extern "C" __global__
#endif
#ifndef DEVICE
#define DEVICE static __device__ __forceinline__
#endif
#ifndef THREADS
#define THREADS 128  // threads per block, a power of two
#endif
#ifndef RESIDENT
#define RESIDENT(blocks) __launch_bounds__(THREADS, blocks)  // blocks per multiprocessor that registers must allow
#endif

struct alignas(8) C32 {  // aligned, so that one load or store moves both parts
    float re, im;
};

struct Position {
    float x, y, z;  // x >= 0
    bool flipped;   // the Friedel mate was taken
};

// Index of voxel (z, y, x), x >= 0, of a volume (2c+1, 2c+1, c+1); 64 bits, as 2 (c+1)^3 passes 2^31 at c = 1024.
DEVICE size_t voxel_index(int c, int x, int y, int z) { return (size_t)((z + c) * (2 * c + 1) + (y + c)) * (c + 1) + x; }

DEVICE Position half_space(float x, float y, float z) {
    const bool flipped = x < 0.f;
    const float sign = flipped ? -1.f : 1.f;
    return Position{sign * x, sign * y, sign * z, flipped};
}

// v = padding A^T (kx, ky, 0), A row by row; x of either sign.
DEVICE Position plane_position(const float *__restrict__ rotation, float kx, float ky, float padding) {
    const float u = padding * kx, v = padding * ky;
    return Position{rotation[0] * u + rotation[3] * v, rotation[1] * u + rotation[4] * v,
                    rotation[2] * u + rotation[5] * v, false};
}

DEVICE Position pixel_position(const float *__restrict__ rotation, float kx, float ky, float padding) {
    const Position v = plane_position(rotation, kx, ky, padding);
    return half_space(v.x, v.y, v.z);
}

// v = padding A^T (kx, ky, bend k^2).
DEVICE Position curved_position(const float *__restrict__ rotation, float kx, float ky, float bend, float padding) {
    const float u = padding * kx, v = padding * ky, w = padding * bend * (kx * kx + ky * ky);
    return half_space(rotation[0] * u + rotation[3] * v + rotation[6] * w,
                      rotation[1] * u + rotation[4] * v + rotation[7] * w,
                      rotation[2] * u + rotation[5] * v + rotation[8] * w);
}

DEVICE float mix(float a, float b, float f) { return a + f * (b - a); }

// Trilinear value at a position, conjugated where it was flipped.
DEVICE C32 interpolate(const C32 *__restrict__ volume, int c, Position v) {
    const float x0 = floorf(v.x), y0 = floorf(v.y), z0 = floorf(v.z);
    const float fx = v.x - x0, fy = v.y - y0, fz = v.z - z0;
    const int row = c + 1, plane = (2 * c + 1) * (c + 1);
    const C32 *p = volume + voxel_index(c, (int)x0, (int)y0, (int)z0);
    const C32 a = p[0], b = p[1], d = p[row], e = p[row + 1];
    const C32 f = p[plane], g = p[plane + 1], h = p[plane + row], i = p[plane + row + 1];
    const float re = mix(mix(mix(a.re, b.re, fx), mix(d.re, e.re, fx), fy),
                         mix(mix(f.re, g.re, fx), mix(h.re, i.re, fx), fy), fz);
    const float im = mix(mix(mix(a.im, b.im, fx), mix(d.im, e.im, fx), fy),
                         mix(mix(f.im, g.im, fx), mix(h.im, i.im, fx), fy), fz);
    return C32{re, v.flipped ? -im : im};
}

// The same for a real volume, whose mates are equal.
DEVICE float interpolate(const float *__restrict__ volume, int c, Position v) {
    const float x0 = floorf(v.x), y0 = floorf(v.y), z0 = floorf(v.z);
    const float fx = v.x - x0, fy = v.y - y0, fz = v.z - z0;
    const int row = c + 1, plane = (2 * c + 1) * (c + 1);
    const float *p = volume + voxel_index(c, (int)x0, (int)y0, (int)z0);
    return mix(mix(mix(p[0], p[1], fx), mix(p[row], p[row + 1], fx), fy),
               mix(mix(p[plane], p[plane + 1], fx), mix(p[plane + row], p[plane + row + 1], fx), fy), fz);
}

struct Deposit {
    C32 value;     // sum over shifts of weight x image
    float weight;  // sum over shifts of weight, times CTF^2 / sigma2
};

DEVICE bool is_empty(const float *__restrict__ weights, int shifts) {
    for (int t = 0; t < shifts; ++t)
        if (weights[t] != 0.f) return false;
    return true;
}

DEVICE Deposit pixel_deposit(const C32 *__restrict__ image, const float *__restrict__ ctf2,
                             const float *__restrict__ weights, int shifts, int pixels, int pixel) {
    Deposit sum = {{0.f, 0.f}, 0.f};
    for (int t = 0; t < shifts; ++t) {
        const float weight = weights[t];  // the same in the whole block
        if (weight == 0.f) continue;
        const C32 x = image[(size_t)t * pixels + pixel];
        sum.value.re += weight * x.re;
        sum.value.im += weight * x.im;
        sum.weight += weight;
    }
    sum.weight *= ctf2[pixel];
    return sum;
}

#endif
