// SPDX-License-Identifier: GPL-3.0-or-later
// From scores to posteriors: maxima, pruning and normalisation, so that no score leaves the device. One block per image
// or run of candidates; what it reads again is in cache. No atomics: results do not depend on the order of blocks.
#include "common.cuh"

#define NONE -3.402823466e38f  // below every score

// The larger, or the sum, of one number of each thread of the block; all threads get it.
DEVICE float block_max(float value) {
    __shared__ float partial[THREADS];
    partial[threadIdx.x] = value;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) partial[threadIdx.x] = fmaxf(partial[threadIdx.x], partial[threadIdx.x + half]);
    }
    __syncthreads();
    const float result = partial[0];
    __syncthreads();  // before the next call writes
    return result;
}

DEVICE double block_sum(double value) {
    __shared__ double partial[THREADS];
    partial[threadIdx.x] = value;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    __syncthreads();
    const double result = partial[0];
    __syncthreads();
    return result;
}

DEVICE float grid_score(float cross, float prior, float norm, float hopeless) {
    const float score = cross + prior - 0.5f * norm;
    return fabsf(score) < -hopeless ? score : hopeless;  // the comparison is false for what is no number
}

// Best over shifts: a thread for each orientation.
KERNEL void best_of_orientations(const float *__restrict__ cross, const float *__restrict__ norm,
                                 const float *__restrict__ prior, int shifts, int orientations, float hopeless,
                                 float *__restrict__ best) {
    const int orientation = blockIdx.y * THREADS + threadIdx.x;
    if (orientation >= orientations) return;
    const size_t image = blockIdx.x, place = image * orientations + orientation;
    const float own_norm = norm[place];
    float most = hopeless;
    for (int t = 0; t < shifts; ++t) {
        const size_t row = image * shifts + t;
        most = fmaxf(most, grid_score(cross[row * orientations + orientation], prior[row], own_norm, hopeless));
    }
    best[place] = most;
}

// Best over orientations: a block for each shift.
KERNEL void best_of_shifts(const float *__restrict__ cross, const float *__restrict__ norm,
                           const float *__restrict__ prior, int shifts, int orientations, float hopeless,
                           float *__restrict__ best) {
    const size_t image = blockIdx.x, row = image * shifts + blockIdx.y;
    const float own_prior = prior[row];
    float most = hopeless;
    for (int r = threadIdx.x; r < orientations; r += THREADS)
        most = fmaxf(most, grid_score(cross[row * orientations + r], own_prior, norm[image * orientations + r], hopeless));
    most = block_max(most);
    if (threadIdx.x == 0) best[row] = most;
}

// Threads of the block stand for (row, column), column fastest, with as many rows side by side as fit; more columns than
// threads are taken in turns.
KERNEL void run_maxima(const float *__restrict__ values, const int *__restrict__ offsets, int columns,
                       float *__restrict__ maxima) {
    __shared__ float partial[THREADS];
    const size_t run = blockIdx.x;
    const int end = offsets[run + 1];
    for (int first = 0; first < columns; first += THREADS) {
        const int width = columns - first < THREADS ? columns - first : THREADS, side = THREADS / width;
        const int column = threadIdx.x % width, lane = threadIdx.x / width;
        float most = NONE;
        if (lane < side)
            for (int row = offsets[run] + lane; row < end; row += side)
                most = fmaxf(most, values[(size_t)row * columns + first + column]);
        partial[threadIdx.x] = most;
        __syncthreads();
        if (lane == 0) {
            for (int other = 1; other < side; ++other) most = fmaxf(most, partial[other * width + column]);
            maxima[run * columns + first + column] = most;
        }
        __syncthreads();
    }
}

KERNEL void run_sums(const double *__restrict__ values, const int *__restrict__ offsets, int columns,
                     double *__restrict__ sums) {
    __shared__ double partial[THREADS];
    const size_t run = blockIdx.x;
    const int end = offsets[run + 1];
    for (int first = 0; first < columns; first += THREADS) {
        const int width = columns - first < THREADS ? columns - first : THREADS, side = THREADS / width;
        const int column = threadIdx.x % width, lane = threadIdx.x / width;
        double sum = 0.;
        if (lane < side)
            for (int row = offsets[run] + lane; row < end; row += side)
                sum += values[(size_t)row * columns + first + column];
        partial[threadIdx.x] = sum;
        __syncthreads();
        if (lane == 0) {
            for (int other = 1; other < side; ++other) sum += partial[other * width + column];
            sums[run * columns + first + column] = sum;
        }
        __syncthreads();
    }
}

struct Leader {
    float value;
    int row;
};

// Whether one comes before another: the larger value, of equal ones the first row.
DEVICE bool is_before(Leader a, Leader b) { return a.value > b.value || (a.value == b.value && a.row < b.row); }

// The first row of a run that comes after a given one; row INT_MAX where there is none. All threads get it.
DEVICE Leader next_leader(const float *__restrict__ values, int start, int end, Leader last) {
    __shared__ Leader partial[THREADS];
    Leader best = {NONE, 2147483647};
    for (int row = start + threadIdx.x; row < end; row += THREADS) {
        const Leader here = {values[row], row};
        if (is_before(last, here) && is_before(here, best)) best = here;
    }
    partial[threadIdx.x] = best;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half && is_before(partial[threadIdx.x + half], partial[threadIdx.x]))
            partial[threadIdx.x] = partial[threadIdx.x + half];
    }
    __syncthreads();
    best = partial[0];
    __syncthreads();
    return best;
}

KERNEL void leaders(const float *__restrict__ values, const int *__restrict__ offsets, int most,
                    int *__restrict__ rows) {
    const size_t run = blockIdx.x;
    const int start = offsets[run], end = offsets[run + 1];
    Leader last = {-NONE, -1};
    for (int n = 0; n < most; ++n) {
        const bool is_left = n < end - start;  // the same for all threads
        if (is_left) last = next_leader(values, start, end, last);
        if (threadIdx.x == 0) rows[run * most + n] = is_left ? last.row : -1;
    }
}

KERNEL void mark_best(const float *__restrict__ values, const int *__restrict__ offsets, float margin, int most,
                      bool *__restrict__ marks) {
    const int start = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
    float top = NONE;
    for (int row = start + threadIdx.x; row < end; row += THREADS) top = fmaxf(top, values[row]);
    const float least = block_max(top) - margin;
    int within = 0;
    for (int row = start + threadIdx.x; row < end; row += THREADS) within += values[row] >= least;
    Leader last = {-NONE, -1};  // of those that are kept
    const bool is_crowded = block_sum(within) > most;
    if (is_crowded)
        for (int n = 0; n < most; ++n) last = next_leader(values, start, end, last);
    for (int row = start + threadIdx.x; row < end; row += THREADS)
        marks[row] = values[row] >= least && (!is_crowded || !is_before(last, Leader{values[row], row}));
}

KERNEL void normalise_runs(const float *__restrict__ score, const int *__restrict__ offsets, int shifts, float margin,
                           float hopeless, float *__restrict__ weights, float *__restrict__ tops,
                           double *__restrict__ masses, int *__restrict__ significant) {
    const size_t run = blockIdx.x;
    const size_t start = (size_t)offsets[run] * shifts, end = (size_t)offsets[run + 1] * shifts;
    float top = NONE;
    for (size_t i = start + threadIdx.x; i < end; i += THREADS) top = fmaxf(top, score[i]);
    top = block_max(top);
    const float least = top - margin;
    double mass = 0.;
    for (size_t i = start + threadIdx.x; i < end; i += THREADS)
        if (score[i] >= least) mass += expf(score[i] - top);
    mass = block_sum(mass);
    const float factor = top > hopeless ? (float)(1. / mass) : 0.f;
    int count = 0;
    for (size_t i = start + threadIdx.x; i < end; i += THREADS) {
        const float weight = score[i] >= least ? factor * expf(score[i] - top) : 0.f;
        weights[i] = weight;
        count += weight > 0.f;
    }
    const double total = block_sum(count);
    if (threadIdx.x == 0) {
        tops[run] = top;
        masses[run] = mass;
        significant[run] = (int)total;
    }
}
