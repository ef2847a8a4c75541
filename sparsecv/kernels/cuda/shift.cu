// SPDX-License-Identifier: GPL-3.0-or-later
// Transforms of images at several shifts each: one block per image and THREADS pixels. A thread reads its pixel once and
// writes it at every shift; the writes are what takes the time.
#include "common.cuh"

KERNEL void shift_images(const C32 *__restrict__ images, const float *__restrict__ shifts,
                         const float *__restrict__ kx, const float *__restrict__ ky, int pixels, int count, float box,
                         C32 *__restrict__ moved) {
    const int pixel = blockIdx.y * THREADS + threadIdx.x;
    if (pixel >= pixels) return;
    const size_t image = blockIdx.x;
    const C32 x = images[image * pixels + pixel];
    const float u = kx[pixel], v = ky[pixel];
    const float *shift = shifts + image * count * 2;
    C32 *out = moved + image * count * pixels + pixel;
    for (int t = 0; t < count; ++t) {
        float s, c;
        // Angles in half turns: no rounding of pi, and no slow path with local memory for large ones.
        sincospif(-2.f * (u * shift[2 * t] + v * shift[2 * t + 1]) / box, &s, &c);
        out[(size_t)t * pixels] = C32{x.re * c - x.im * s, x.re * s + x.im * c};
    }
}
