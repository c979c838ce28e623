// Cutting work into tasks, and running them on the threads that torch has.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

namespace {

// GOMP_parallel of the OpenMP runtime that torch has loaded; null: serial. Linking to one would load a second.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
Parallel parallel = nullptr;

// Calls work(next) on up to `threads` threads; next() is a task that no other call has got, or -1 when none is left.
template <typename Work>
void for_each(int64_t tasks, int64_t threads, const Work& work) {
    struct Shared {
        std::atomic<int64_t> next;
        int64_t tasks;
        const Work& work;
    } shared{{0}, tasks, work};
    const auto run = [](void* data) {
        Shared& shared = *static_cast<Shared*>(data);
        shared.work([&shared] {
            const int64_t task = shared.next.fetch_add(1, std::memory_order_relaxed);
            return task < shared.tasks ? task : -1;
        });
    };
    threads = std::min(threads, tasks);
    if (threads > 1 && parallel)
        parallel(run, &shared, static_cast<unsigned>(threads), 0);
    else
        run(&shared);
}

struct Free {
    void operator()(float* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<float[], Free>;

// Uninitialised floats on a cache line of their own.
Buffer allocate(int64_t count) {
    const int64_t bytes = (std::max<int64_t>(count, 1) * 4 + 63) / 64 * 64;
    return Buffer(static_cast<float*>(std::aligned_alloc(64, bytes)));
}

// The grid of tasks: slices are as wide as leaves this many tasks, but not too narrow to read rows in long pieces.
struct Grid {
    int64_t samples, channels, slice, slices;

    Grid(int64_t samples, int64_t channels) : samples(samples), channels(channels) {
        constexpr int64_t TASKS = 64, NARROWEST = 128;
        slice = padded((samples * channels + TASKS - 1) / TASKS);
        slice = std::min(std::max(slice, NARROWEST), padded(channels));
        slices = slice ? (channels + slice - 1) / slice : 0;
    }
    int64_t tasks() const { return samples * slices; }
    Task operator[](int64_t index) const {
        const int64_t begin = index % slices * slice;
        return {index / slices, begin, std::min(begin + slice, channels)};
    }
};

// Threads pay off from about this many multiply-adds a thread.
int64_t useful_threads(int64_t threads, int64_t work) { return std::min(threads, 1 + work / 200000); }

}  // namespace
