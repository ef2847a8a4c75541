// SPDX-License-Identifier: GPL-3.0-or-later
// Executes CUDA kernels on the CPU. The source is included inside `struct Block : cuda_host::BlockBase`, so that kernels
// become member functions and threadIdx and its like become members. Kernels without barriers run as loops; the threads
// of a block with barriers run as fibers, resumed between barriers in a random order that is given by a seed.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_HOST_SWAPCONTEXT 1  // the sanitizer follows swapcontext, not longjmp between stacks
#else
#define CUDA_HOST_SWAPCONTEXT 0  // _longjmp saves the two system calls of swapcontext
#endif

#define KERNEL
#define DEVICE inline
#define RESIDENT(blocks)
#define __shared__ static thread_local
#define __syncthreads() barrier(__LINE__)

namespace cuda_host {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
    unsigned size() const { return x * y * z; }
    Dim3 at(unsigned i) const { return {i % x, i / x % y, i / x / y}; }
};

enum Status { OK = 0, DIVERGED = 1 };

// The threads of one block as fibers of one operating-system thread.
class Fibers {
    struct Fiber {
        ucontext_t context;
        jmp_buf point;
        std::unique_ptr<char[]> stack;
        bool started = false, finished = false;
        int line = 0;  // of the barrier that it waits at
    };
    static constexpr size_t STACK = 64 * 1024;
    std::vector<std::unique_ptr<Fiber>> fibers;
    ucontext_t home;
    jmp_buf home_point;
    unsigned running = 0;
    void (*body)(void *, unsigned) = nullptr;
    void *argument = nullptr;

    static Fibers *&active() {
        static thread_local Fibers *pointer = nullptr;
        return pointer;
    }

    static void entry() {
        Fibers &self = *active();
        for (;;) {  // a fiber serves one block after the other
            self.body(self.argument, self.running);
            self.fibers[self.running]->finished = true;
            self.leave();
        }
    }

    void leave() {
        Fiber &fiber = *fibers[running];
#if CUDA_HOST_SWAPCONTEXT
        swapcontext(&fiber.context, &home);
#else
        if (_setjmp(fiber.point) == 0) _longjmp(home_point, 1);
#endif
    }

    void resume(unsigned i) {
        running = i;
        Fiber &fiber = *fibers[i];
#if CUDA_HOST_SWAPCONTEXT
        swapcontext(&home, &fiber.context);
#else
        if (_setjmp(home_point) == 0) {
            if (fiber.started) _longjmp(fiber.point, 1);
            fiber.started = true;
            setcontext(&fiber.context);
        }
#endif
    }

    void grow(unsigned count) {
        while (fibers.size() < count) {
            auto fiber = std::make_unique<Fiber>();
            fiber->stack.reset(new char[STACK]);
            getcontext(&fiber->context);
            fiber->context.uc_stack.ss_sp = fiber->stack.get();
            fiber->context.uc_stack.ss_size = STACK;
            fiber->context.uc_link = nullptr;
            makecontext(&fiber->context, entry, 0);
            fibers.push_back(std::move(fiber));
        }
    }

public:
    static void wait(int line) {
        Fibers &self = *active();
        self.fibers[self.running]->line = line;
        self.leave();
    }

    // Run one block to its end; DIVERGED when its threads wait at different barriers, or some have left before one.
    Status run(unsigned count, uint64_t seed, void (*function)(void *, unsigned), void *data) {
        grow(count);
        active() = this;
        body = function;
        argument = data;
        std::vector<unsigned> order(count);
        for (unsigned i = 0; i < count; ++i) {
            order[i] = i;
            fibers[i]->finished = false;
        }
        uint64_t state = seed * 2654435761u + 88172645463325252u;
        for (;;) {
            for (unsigned i = count; i > 1; --i) {
                state ^= state << 13, state ^= state >> 7, state ^= state << 17;
                std::swap(order[i - 1], order[state % i]);
            }
            for (unsigned i : order) resume(i);
            unsigned finished = 0;
            for (unsigned i = 0; i < count; ++i) finished += fibers[i]->finished;
            if (finished == count) return OK;
            for (unsigned i = 0; i < count; ++i)
                if (finished || fibers[i]->line != fibers[0]->line) {
                    fibers.clear();  // the waiting ones would go on in the middle of a kernel
                    return DIVERGED;
                }
        }
    }
};

struct BlockBase {
    Dim3 threadIdx, blockIdx, blockDim, gridDim;
    static void barrier(int line) { Fibers::wait(line); }
};

// Read-modify-write of a floating-point number in memory that other threads change too.
template <class T> inline T atomicAdd(T *address, T value) {
    T old;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    T sum = old + value;
    while (!__atomic_compare_exchange(address, &old, &sum, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) sum = old + value;
    return old;
}

// Bits that are set.
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// CUDA's sine and cosine of pi x; the argument is reduced first, which is exact.
inline void sincospif(float x, float *sine, float *cosine) {
    const double angle = 3.14159265358979323846 * std::remainder((double)x, 2.);
    *sine = (float)std::sin(angle);
    *cosine = (float)std::cos(angle);
}

template <class Method> struct Signature;
template <class Block, class... A> struct Signature<void (Block::*)(A...)> {
    using Arguments = std::tuple<A...>;
    static constexpr size_t COUNT = sizeof...(A);

    // One letter and the size in bytes for each argument: p points to items of that size, f is real, i is an integer.
    template <class T> static std::string letter() {
        if constexpr (std::is_pointer_v<T>) return "p" + std::to_string(sizeof(std::remove_pointer_t<T>)) + " ";
        return (std::is_floating_point_v<T> ? "f" : "i") + std::to_string(sizeof(T)) + " ";
    }
    static std::string text() { return (std::string() + ... + letter<A>()); }
};

template <auto Kernel, class Block, size_t... I>
inline void call(Block &block, void **arguments, std::index_sequence<I...>) {
    using Arguments = typename Signature<decltype(Kernel)>::Arguments;
    (block.*Kernel)(*static_cast<std::remove_reference_t<std::tuple_element_t<I, Arguments>> *>(arguments[I])...);
}

template <auto Kernel, class Block, bool HasBarriers>
int launch(const unsigned *grid, const unsigned *block, void **arguments, uint64_t seed) {
    const Dim3 grid_dim{grid[0], grid[1], grid[2]}, block_dim{block[0], block[1], block[2]};
    const int64_t blocks = (int64_t)grid_dim.x * grid_dim.y * grid_dim.z;
    constexpr auto indices = std::make_index_sequence<Signature<decltype(Kernel)>::COUNT>();
    int status = OK;
#pragma omp parallel for schedule(dynamic) reduction(| : status)
    for (int64_t b = 0; b < blocks; ++b) {
        Block prototype;
        prototype.gridDim = grid_dim;
        prototype.blockDim = block_dim;
        const unsigned xy = (unsigned)(b / grid_dim.x);
        prototype.blockIdx = {(unsigned)(b % grid_dim.x), xy % grid_dim.y, xy / grid_dim.y};
        if constexpr (HasBarriers) {
            static thread_local Fibers fibers;
            struct Work {
                Block &prototype;
                void **arguments;
            } work{prototype, arguments};
            auto thread = [](void *data, unsigned i) {
                Work &work = *static_cast<Work *>(data);
                Block own = work.prototype;
                own.threadIdx = own.blockDim.at(i);
                call<Kernel>(own, work.arguments, std::make_index_sequence<Signature<decltype(Kernel)>::COUNT>());
            };
            status |= fibers.run(block_dim.size(), seed + (uint64_t)b, thread, &work);
        } else {
            for (unsigned i = 0; i < block_dim.size(); ++i) {
                prototype.threadIdx = block_dim.at(i);
                call<Kernel>(prototype, arguments, indices);
            }
        }
    }
    return status;
}

}  // namespace cuda_host

#define CUDA_HOST_VISIBLE extern "C" __attribute__((visibility("default")))
#define CUDA_HOST_EXPORT(kernel, has_barriers)                                                                          \
    CUDA_HOST_VISIBLE int launch_##kernel(const unsigned *grid, const unsigned *block, void **arguments,               \
                                          uint64_t seed) {                                                              \
        return cuda_host::launch<&Block::kernel, Block, has_barriers>(grid, block, arguments, seed);                    \
    }                                                                                                                   \
    CUDA_HOST_VISIBLE const char *signature_##kernel() {                                                                \
        static const std::string text = cuda_host::Signature<decltype(&Block::kernel)>::text();                         \
        return text.c_str();                                                                                            \
    }
