// The selective scan of one sample and one slice of channels, forward and backward. Included once per instruction set,
// after vec.h.
//
// Lanes are channels, so the sum over states needs no shuffles, and B_t and C_t are broadcasts. A slice walks time in
// chunks of CHUNK tokens; in a chunk, WIDTH channels at a time, it first computes what does not depend on the state
// (softplus, delta u) into a tile that stays in the first-level cache, then runs the recurrence for a few states at a
// time with h in registers. The backward walks the chunks from the last to the first, recomputes a chunk's h from the
// state stored before it, and runs the adjoint recurrence g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1} over it.

// What a tile holds of CHUNK tokens of WIDTH channels.
struct Tile {
    Vec delta[CHUNK];       // after bias and softplus
    Vec delta_u[CHUNK];
    Vec y[CHUNK];           // D u, plus the sum of C h
    Vec u[CHUNK];
    Vec slope[CHUNK];       // backward only, as all below: d softplus
    Vec grad_y[CHUNK];      // of y before the gate
    Vec gate_slope[CHUNK];  // d out / d z, without y
    Vec grad_delta_u[CHUNK];
    Vec grad_decay[CHUNK];  // of log2 of the decay, over A
};

struct Place {
    int64_t sample, channel, count;  // the tile's first channel, and how many of its lanes are channels
    int64_t first, tokens;           // the chunk's first token in scan order, and its length
};

// A sequence's row at a token in scan order, and the distance to the next one.
struct Row {
    float* at;
    int64_t step;
};

INLINE Row row(const Sequence& sequence, const ScanArgs& args, int64_t sample, int64_t token, int64_t channel) {
    const int64_t position = args.reverse ? args.length - 1 - token : token;
    float* at = sequence.data + sample * sequence.batch_stride + position * sequence.row_stride + channel;
    return {at, args.reverse ? -sequence.row_stride : sequence.row_stride};
}

INLINE Row row(const Sequence& sequence, const ScanArgs& args, const Place& place, int64_t channel) {
    return row(sequence, args, place.sample, place.first, channel);
}

// Fills delta and delta_u, starts y with D u and, for a backward, fills u and slope. False where a decay leaves the range
// of exp2_in_range. Two loops, since one would be too long a chain of operations to overlap with the next token's.
template <bool BACKWARD, bool FULL>
INLINE bool stage(Tile& tile, const ScanArgs& args, const Place& place, Vec largest_A) {
    const Row u = row(args.u, args, place, place.channel), delta = row(args.delta, args, place, place.channel);
    const int64_t count = FULL ? WIDTH : place.count, tokens = place.tokens;
    const Vec bias = args.delta_bias ? load_part(args.delta_bias + place.channel, count) : splat(0.0f);
    const Vec D = args.D ? load_part(args.D + place.channel, count) : splat(0.0f);
    for (int64_t t = 0; t < tokens; ++t) {
        tile.u[t] = load_part(u.at + t * u.step, count);
        __builtin_prefetch(u.at + t * u.step + PREFETCH);
        __builtin_prefetch(delta.at + t * delta.step + PREFETCH);
        tile.delta[t] = load_part(delta.at + t * delta.step, count) + bias;
        tile.slope[t] = exp_minus_magnitude(tile.delta[t]);
    }
    IntVec outside = {};
    for (int64_t t = 0; t < tokens; ++t) {
        const Vec u_t = tile.u[t], raw = tile.delta[t], e = tile.slope[t];
        const Vec delta_t = args.softplus ? softplus(raw, e) : raw;
        if (BACKWARD) tile.slope[t] = args.softplus ? sigmoid(raw, e) : splat(1.0f);
        outside |= ~(magnitude(delta_t) * largest_A < splat(EXP2_LIMIT));
        tile.delta[t] = delta_t;
        tile.delta_u[t] = delta_t * u_t;
        tile.y[t] = D * u_t;
    }
    return !any(outside);
}

template <bool BACKWARD>
INLINE bool stage(Tile& tile, const ScanArgs& args, const Place& place, Vec largest_A) {
    return place.count < WIDTH ? stage<BACKWARD, false>(tile, args, place, largest_A)
                               : stage<BACKWARD, true>(tile, args, place, largest_A);
}

template <bool IN_RANGE>
INLINE Vec decay(Vec delta, Vec A) {
    return IN_RANGE ? exp2_in_range(delta * A) : exp2_any(delta * A);
}

// Advances GROUP states over the tile: h_t = exp2(delta_t A) h_{t-1} + delta_t u_t B_t, and y_t += C_t h_t.
template <int GROUP, bool IN_RANGE>
INLINE void advance(Tile& tile, int64_t tokens, const float* A, Row B, Row C, float* state) {
    Vec h[GROUP], log_decay[GROUP];
    for (int n = 0; n < GROUP; ++n) {
        h[n] = load(state + n * WIDTH);
        log_decay[n] = load(A + n * WIDTH);
    }
    for (int64_t t = 0; t < tokens; ++t) {
        const Vec delta = tile.delta[t], delta_u = tile.delta_u[t];
        const float *B_t = B.at + t * B.step, *C_t = C.at + t * C.step;
        Vec y = tile.y[t];
        for (int n = 0; n < GROUP; ++n) {
            h[n] = decay<IN_RANGE>(delta, log_decay[n]) * h[n] + delta_u * B_t[n];
            y += h[n] * C_t[n];
        }
        tile.y[t] = y;
    }
    for (int n = 0; n < GROUP; ++n) store(state + n * WIDTH, h[n]);
}

template <bool IN_RANGE>
INLINE void advance_all(Tile& tile, const ScanArgs& args, const Place& place, const float* A, float* state) {
    int64_t n = 0;
    for (; n + FORWARD_GROUP <= args.states; n += FORWARD_GROUP)
        advance<FORWARD_GROUP, IN_RANGE>(
            tile, place.tokens, A + n * WIDTH, row(args.B, args, place, n), row(args.C, args, place, n),
            state + n * WIDTH);
    for (; n < args.states; ++n)
        advance<1, IN_RANGE>(
            tile, place.tokens, A + n * WIDTH, row(args.B, args, place, n), row(args.C, args, place, n),
            state + n * WIDTH);
}

// out = y SiLU(z), y with what `out` holds already if so asked.
template <bool FULL>
INLINE void write_out(Tile& tile, const ScanArgs& args, const Place& place) {
    const Row out = row(args.out, args, place, place.channel);
    const int64_t count = FULL ? WIDTH : place.count, tokens = place.tokens;
    if (args.accumulate_out)
        for (int64_t t = 0; t < tokens; ++t) tile.y[t] += load_part(out.at + t * out.step, count);
    if (args.z.data) {
        const Row z = row(args.z, args, place, place.channel);
        for (int64_t t = 0; t < tokens; ++t) {
            const Vec z_t = load_part(z.at + t * z.step, count);
            tile.y[t] *= z_t * sigmoid(z_t);
        }
    }
    for (int64_t t = 0; t < tokens; ++t) store_part(out.at + t * out.step, tile.y[t], count);
}

// log2(e) A of all channels as (blocks of WIDTH channels, states, WIDTH), and its largest magnitude per lane: every
// task reads it in this order.
void prepare_A(const ScanArgs& args, float* prepared) {
    for (int64_t channel = 0; channel < args.channels; channel += WIDTH) {
        for (int64_t n = 0; n < args.states; ++n, prepared += WIDTH) {
            float lanes[WIDTH] = {};
            for (int64_t i = 0; i < WIDTH && channel + i < args.channels; ++i)
                lanes[i] = args.A[(channel + i) * args.states + n];
            Vec A = load(lanes);
            if (args.A_is_log) A = -exp2_any(LOG2_E * A);
            store(prepared, LOG2_E * A);
        }
    }
}

INLINE Vec largest(const float* A, int64_t states) {
    Vec found = splat(0.0f);
    for (int64_t n = 0; n < states; ++n) {
        const Vec candidate = magnitude(load(A + n * WIDTH));
        // A NaN is the largest and stays.
        found = (candidate <= found) | (found != found) ? found : candidate;
    }
    return found;
}

// `states` holds the slice's h between chunks: (blocks, states, WIDTH).
void scan_forward(const ScanArgs& args, const float* prepared_A, const Task& task, float* states) {
    const auto [sample, begin, end] = task;
    Tile tile;
    const int64_t block_size = args.states * WIDTH;
    const int64_t num_chunks = (args.length + CHUNK - 1) / CHUNK;
    for (int64_t i = 0; i < (end - begin + WIDTH - 1) / WIDTH * block_size; ++i) states[i] = 0.0f;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        const int64_t first = chunk * CHUNK, rest = args.length - first;
        float* state = states;
        for (int64_t channel = begin; channel < end; channel += WIDTH, state += block_size) {
            const Place place{sample, channel, end - channel, first, rest < CHUNK ? rest : CHUNK};
            const float* A = prepared_A + channel * args.states;
            if (stage<false>(tile, args, place, largest(A, args.states)))
                advance_all<true>(tile, args, place, A, state);
            else
                advance_all<false>(tile, args, place, A, state);
            if (args.ends && chunk + 1 < num_chunks) {
                float* ends = args.ends + (sample * (num_chunks - 1) + chunk) * args.states * args.channels + channel;
                for (int64_t n = 0; n < args.states; ++n)
                    store_part(ends + n * args.channels, load(state + n * WIDTH), place.count);
            }
            place.count < WIDTH ? write_out<false>(tile, args, place) : write_out<true>(tile, args, place);
        }
    }
}

// Adds, for GROUP states: y, grad_delta_u and grad_decay of the tile; grad_B and grad_C; grad_A.
template <int GROUP, bool IN_RANGE>
INLINE void sweep_back(Tile& tile, int64_t tokens, int64_t states, const float* A, Row B, Row C, const Vec* start,
                       float* carry, float* grad_A, float* grad_BC) {
    Vec decays[CHUNK][GROUP], h[CHUNK + 1][GROUP];
    Vec log_decay[GROUP], g_next[GROUP], sum_A[GROUP];
    for (int n = 0; n < GROUP; ++n) {
        log_decay[n] = load(A + n * WIDTH);
        h[0][n] = start[n];
        g_next[n] = load(carry + n * WIDTH);
        sum_A[n] = load(grad_A + n * WIDTH);
    }
    for (int64_t t = 0; t < tokens; ++t) {
        const Vec delta = tile.delta[t], delta_u = tile.delta_u[t];
        const float *B_t = B.at + t * B.step, *C_t = C.at + t * C.step;
        Vec y = tile.y[t];
        for (int n = 0; n < GROUP; ++n) {
            decays[t][n] = decay<IN_RANGE>(delta, log_decay[n]);
            h[t + 1][n] = decays[t][n] * h[t][n] + delta_u * B_t[n];
            y += h[t + 1][n] * C_t[n];
        }
        tile.y[t] = y;
    }
    for (int64_t t = tokens - 1; t >= 0; --t) {
        const Vec delta = tile.delta[t], delta_u = tile.delta_u[t], grad_y = tile.grad_y[t];
        const float *B_t = B.at + t * B.step, *C_t = C.at + t * C.step;
        float* to_BC = grad_BC + t * states * 2 * WIDTH;
        Vec grad_delta_u = tile.grad_delta_u[t], grad_decay = tile.grad_decay[t];
        for (int n = 0; n < GROUP; ++n) {
            const Vec g = grad_y * C_t[n] + g_next[n];
            float *to_B = to_BC + 2 * n * WIDTH, *to_C = to_B + WIDTH;
            store(to_B, load(to_B) + delta_u * g);
            store(to_C, load(to_C) + grad_y * h[t + 1][n]);
            grad_delta_u += g * B_t[n];
            g_next[n] = decays[t][n] * g;
            const Vec q = g_next[n] * h[t][n];
            sum_A[n] += q * delta;
            grad_decay += q * log_decay[n];
        }
        tile.grad_delta_u[t] = grad_delta_u;
        tile.grad_decay[t] = grad_decay;
    }
    for (int n = 0; n < GROUP; ++n) {
        store(carry + n * WIDTH, g_next[n]);
        store(grad_A + n * WIDTH, sum_A[n]);
    }
}

template <int GROUP, bool IN_RANGE>
INLINE void sweep_back_at(Tile& tile, const ScanArgs& args, const Place& place, int64_t n, const float* A,
                          const float* start, float* carry, float* grad_A, const ScanScratch& scratch) {
    Vec h_start[GROUP];
    for (int i = 0; i < GROUP; ++i)
        h_start[i] = start ? load_part(start + (n + i) * args.channels, place.count) : splat(0.0f);
    sweep_back<GROUP, IN_RANGE>(
        tile, place.tokens, args.states, A + n * WIDTH, row(args.B, args, place, n), row(args.C, args, place, n),
        h_start, carry + n * WIDTH, grad_A + n * WIDTH, scratch.grad_BC + 2 * n * WIDTH);
}

template <bool IN_RANGE>
INLINE void sweep_back_all(Tile& tile, const ScanArgs& args, const Place& place, const float* A, const float* start,
                           float* carry, float* grad_A, const ScanScratch& scratch) {
    int64_t n = 0;
    for (; n + BACKWARD_GROUP <= args.states; n += BACKWARD_GROUP)
        sweep_back_at<BACKWARD_GROUP, IN_RANGE>(tile, args, place, n, A, start, carry, grad_A, scratch);
    for (; n < args.states; ++n) sweep_back_at<1, IN_RANGE>(tile, args, place, n, A, start, carry, grad_A, scratch);
}

// grad_y = grad_out SiLU(z), and what grad_z is per y.
template <bool FULL>
INLINE void stage_gradient(Tile& tile, const ScanArgs& args, const Place& place) {
    const Row grad = row(args.grad_out, args, place, place.channel);
    const int64_t count = FULL ? WIDTH : place.count, tokens = place.tokens;
    for (int64_t t = 0; t < tokens; ++t) {
        tile.grad_y[t] = load_part(grad.at + t * grad.step, count);
        tile.grad_delta_u[t] = splat(0.0f);
        tile.grad_decay[t] = splat(0.0f);
    }
    if (args.z.data) {
        const Row z = row(args.z, args, place, place.channel);
        for (int64_t t = 0; t < tokens; ++t) {
            const Vec z_t = load_part(z.at + t * z.step, count), grad_t = tile.grad_y[t];
            const Vec s = sigmoid(z_t), silu = z_t * s;
            tile.grad_y[t] = grad_t * silu;
            tile.gate_slope[t] = grad_t * (s + silu * (1.0f - s));
        }
    }
}

template <bool FULL>
INLINE void write_gradients(const Tile& tile, const ScanArgs& args, const Place& place, float* grad_D,
                            float* grad_bias) {
    const Row grad_u = row(args.grad_u, args, place, place.channel);
    const Row grad_delta = row(args.grad_delta, args, place, place.channel);
    const int64_t count = FULL ? WIDTH : place.count, tokens = place.tokens;
    const Vec D = args.D ? load_part(args.D + place.channel, count) : splat(0.0f);
    Vec sum_D = load(grad_D), sum_bias = load(grad_bias);
    for (int64_t t = 0; t < tokens; ++t) {
        const Vec u = tile.u[t], grad_y = tile.grad_y[t], grad_delta_u = tile.grad_delta_u[t];
        const Vec to_delta = (LN_2 * tile.grad_decay[t] + grad_delta_u * u) * tile.slope[t];
        store_part(grad_delta.at + t * grad_delta.step, to_delta, count);
        store_part(grad_u.at + t * grad_u.step, grad_delta_u * tile.delta[t] + grad_y * D, count);
        sum_bias += to_delta;
        sum_D += grad_y * u;
    }
    store(grad_D, sum_D);
    store(grad_bias, sum_bias);
    if (args.z.data) {
        const Row grad_z = row(args.grad_z, args, place, place.channel);
        for (int64_t t = 0; t < tokens; ++t) {
            float* to = grad_z.at + t * grad_z.step;
            Vec to_z = tile.gate_slope[t] * tile.y[t];
            if (args.accumulate_z) to_z += load_part(to, count);
            store_part(to, to_z, count);
        }
    }
}

void scan_backward(const ScanArgs& args, const float* prepared_A, const Task& task, const ScanScratch& scratch,
                   const ScanSums& sums) {
    const auto [sample, begin, end] = task;
    Tile tile;
    const int64_t block_size = args.states * WIDTH;
    const int64_t num_chunks = (args.length + CHUNK - 1) / CHUNK;
    for (int64_t i = 0; i < (end - begin + WIDTH - 1) / WIDTH * block_size; ++i) scratch.carries[i] = 0.0f;
    for (int64_t chunk = num_chunks - 1; chunk >= 0; --chunk) {
        const int64_t first = chunk * CHUNK, rest = args.length - first;
        const int64_t tokens = rest < CHUNK ? rest : CHUNK;
        for (int64_t i = 0; i < tokens * 2 * block_size; ++i) scratch.grad_BC[i] = 0.0f;
        float* carry = scratch.carries;
        for (int64_t channel = begin; channel < end; channel += WIDTH, carry += block_size) {
            const Place place{sample, channel, end - channel, first, tokens};
            const float* A = prepared_A + channel * args.states;
            const float* start = nullptr;
            if (chunk) start = args.ends + (sample * (num_chunks - 1) + chunk - 1) * args.states * args.channels + channel;
            const bool in_range = stage<true>(tile, args, place, largest(A, args.states));
            place.count < WIDTH ? stage_gradient<false>(tile, args, place) : stage_gradient<true>(tile, args, place);
            float* grad_A = sums.grad_A + channel * args.states;
            if (in_range)
                sweep_back_all<true>(tile, args, place, A, start, carry, grad_A, scratch);
            else
                sweep_back_all<false>(tile, args, place, A, start, carry, grad_A, scratch);
            float *grad_D = sums.grad_D + channel, *grad_bias = sums.grad_bias + channel;
            if (place.count < WIDTH)
                write_gradients<false>(tile, args, place, grad_D, grad_bias);
            else
                write_gradients<true>(tile, args, place, grad_D, grad_bias);
        }
        for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t n = 0; n < args.states; ++n) {
                const float* from = scratch.grad_BC + (t * args.states + n) * 2 * WIDTH;
                const int64_t to = (first + t) * args.states + n;
                sums.grad_B[to] = sum_lanes(load(from));
                sums.grad_C[to] = sum_lanes(load(from + WIDTH));
            }
        }
    }
}
