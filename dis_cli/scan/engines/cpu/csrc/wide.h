// The convolution of conv.h with any number of taps. Included once per instruction set, before conv.h. Tokens are first
// brought together, since rows of a wide array are often a multiple of the cache's stride apart; then several sums run
// side by side, so that an operation waits neither for memory nor for the one before it.

// Taps that are taken at a time: as many as a model may have.
constexpr int64_t TAP_GROUP = 33;
constexpr int64_t SUMS = 8;

// `number` tokens from `from` on, which counts from the token `first` that x is at; zeros before the sequence.
INLINE void bring_together(Row x, int64_t first, int64_t from, int64_t number, int64_t count, Vec* to) {
    for (int64_t t = from; t < from + number; ++t)
        *to++ = first + t >= 0 ? load_part(x.at + t * x.step, count) : splat(0.0f);
}

// to[t] += the sum of weight[k] * x[t - k].
INLINE void add_taps(const Vec* weight, int64_t taps, const Vec* x, int64_t tokens, Vec* to) {
    int64_t t = 0;
    for (; t + SUMS <= tokens; t += SUMS) {
        Vec sum[SUMS];
        for (int64_t i = 0; i < SUMS; ++i) sum[i] = to[t + i];
        for (int64_t k = 0; k < taps; ++k)
            for (int64_t i = 0; i < SUMS; ++i) sum[i] += weight[k] * x[t + i - k];
        for (int64_t i = 0; i < SUMS; ++i) to[t + i] = sum[i];
    }
    for (; t < tokens; ++t)
        for (int64_t k = 0; k < taps; ++k) to[t] += weight[k] * x[t - k];
}

// to[k * step] += the sum over tokens of grad[t] * x[t - k].
INLINE void add_products(const Vec* grad, const Vec* x, int64_t tokens, int64_t taps, float* to, int64_t step) {
    int64_t k = 0;
    for (; k + SUMS <= taps; k += SUMS) {
        Vec sum[SUMS];
        for (int64_t i = 0; i < SUMS; ++i) sum[i] = load(to + (k + i) * step);
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t i = 0; i < SUMS; ++i) sum[i] += grad[t] * x[t - k - i];
        for (int64_t i = 0; i < SUMS; ++i) store(to + (k + i) * step, sum[i]);
    }
    for (; k < taps; ++k) {
        Vec sum = load(to + k * step);
        for (int64_t t = 0; t < tokens; ++t) sum += grad[t] * x[t - k];
        store(to + k * step, sum);
    }
}

// `convolve` of conv.h.
INLINE void convolve_wide(const ConvArgs& args, const float* prepared, Row x, int64_t first, int64_t tokens,
                          int64_t count, Vec* to) {
    const int64_t width = padded(args.channels), taps = args.taps;
    const Vec bias = load(prepared + taps * width);
    for (int64_t t = 0; t < tokens; ++t) to[t] = bias;
    Vec weight[TAP_GROUP], seen[WIDE_CHUNK + TAP_GROUP - 1];
    for (int64_t lag = 0; lag < taps; lag += TAP_GROUP) {
        const int64_t group = least(taps - lag, TAP_GROUP), before = group - 1;
        for (int64_t k = 0; k < group; ++k) weight[k] = load(prepared + (taps - 1 - lag - k) * width);
        for (int64_t from = 0; from < tokens; from += WIDE_CHUNK) {
            const int64_t piece = least(tokens - from, WIDE_CHUNK);
            bring_together(x, first, from - lag - before, piece + before, count, seen);
            add_taps(weight, group, seen + before, piece, to + from);
        }
    }
}

// Gradients of at most WIDE_CHUNK tokens of x, and of the taps, from those of the convolution, `grad`, which has
// taps - 1 tokens more.
INLINE void wide_gradients(const ConvArgs& args, const float* prepared, Row x, Row to, int64_t first, int64_t tokens,
                           int64_t count, const Vec* grad, float* sums) {
    const int64_t width = padded(args.channels), taps = args.taps;
    Vec weight[TAP_GROUP], seen[WIDE_CHUNK + TAP_GROUP - 1], grad_x[WIDE_CHUNK];
    for (int64_t t = 0; t < tokens; ++t)
        grad_x[t] = args.accumulate_x ? load_part(to.at + t * to.step, count) : splat(0.0f);
    for (int64_t lag = 0; lag < taps; lag += TAP_GROUP) {
        const int64_t group = least(taps - lag, TAP_GROUP), before = group - 1, first_tap = taps - lag - group;
        // A token's gradient comes from those that follow: the taps the other way round.
        for (int64_t k = 0; k < group; ++k) weight[k] = load(prepared + (first_tap + k) * width);
        add_taps(weight, group, grad + lag + before, tokens, grad_x);
        bring_together(x, first, -lag - before, tokens + before, count, seen);
        add_products(grad, seen + before, tokens, group, sums + (taps - 1 - lag) * width, -width);
    }
    Vec bias = load(sums + taps * width);
    for (int64_t t = 0; t < tokens; ++t) {
        bias += grad[t];
        store_part(to.at + t * to.step, grad_x[t], count);
    }
    store(sums + taps * width, bias);
}
