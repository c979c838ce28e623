// The causal depthwise convolution with SiLU of one sample and one slice of channels. Included once per instruction
// set, after scan.h. Lanes are channels; `prepared` holds the taps and then the bias, (taps + 1, padded channels).

INLINE Row row(const Sequence& sequence, const ConvArgs& args, int64_t sample, int64_t token, int64_t channel) {
    const int64_t position = args.reverse ? args.length - 1 - token : token;
    float* at = sequence.data + sample * sequence.batch_stride + position * sequence.row_stride + channel;
    return {at, args.reverse ? -sequence.row_stride : sequence.row_stride};
}

void prepare_conv(const ConvArgs& args, float* prepared) {
    for (int64_t k = 0; k <= args.taps; ++k) {
        for (int64_t channel = 0; channel < padded(args.channels); ++channel) {
            const bool inside = channel < args.channels;
            const float value = !inside ? 0.0f : k < args.taps ? args.weight[channel * args.taps + k] : args.bias[channel];
            *prepared++ = value;
        }
    }
}

// The convolution before its SiLU at `tokens` tokens from `first` on, WIDTH channels of it. With TAPS, the tokens before
// the current one stay in registers; TAPS = 0 takes any number.
template <int TAPS>
INLINE void convolve(const ConvArgs& args, const float* prepared, Row x, int64_t first, int64_t tokens, int64_t count,
                     Vec* to) {
    if constexpr (TAPS == 0) {
        convolve_wide(args, prepared, x, first, tokens, count, to);
    } else {
        const int64_t width = padded(args.channels);
        const Vec bias = load(prepared + TAPS * width);
        Vec weight[TAPS], seen[TAPS];  // seen[k] is k tokens back
        for (int64_t k = 0; k < TAPS; ++k) {
            weight[k] = load(prepared + (TAPS - 1 - k) * width);
            seen[k] = k && k <= first ? load_part(x.at - k * x.step, count) : splat(0.0f);
        }
        for (int64_t t = 0; t < tokens; ++t) {
            seen[0] = load_part(x.at + t * x.step, count);
            __builtin_prefetch(x.at + t * x.step + PREFETCH);
            Vec sum = bias;
            for (int k = TAPS - 1; k >= 0; --k) sum += weight[k] * seen[k];
            for (int k = TAPS - 1; k > 0; --k) seen[k] = seen[k - 1];
            to[t] = sum;
        }
    }
}

// Tokens that are computed at a time.
template <int TAPS>
constexpr int64_t CONV_CHUNK = TAPS ? CHUNK : WIDE_CHUNK;

template <int TAPS, bool FULL>
INLINE void conv_forward_block(const ConvArgs& args, const float* prepared, int64_t sample, int64_t channel,
                               int64_t first, int64_t tokens, int64_t rest) {
    Vec p[CONV_CHUNK<TAPS>];
    const int64_t count = FULL ? WIDTH : rest;
    const Row x = row(args.x, args, sample, first, channel), out = row(args.out, args, sample, first, channel);
    convolve<TAPS>(args, prepared + channel, x, first, tokens, count, p);
    for (int64_t t = 0; t < tokens; ++t) {
        __builtin_prefetch(out.at + t * out.step + PREFETCH, 1);
        store_part(out.at + t * out.step, p[t] * sigmoid(p[t]), count);
    }
}

template <int TAPS>
INLINE void conv_forward_taps(const ConvArgs& args, const float* prepared, const Task& task) {
    const auto [sample, begin, end] = task;
    for (int64_t first = 0; first < args.length; first += CONV_CHUNK<TAPS>) {
        const int64_t tokens = least(args.length - first, CONV_CHUNK<TAPS>);
        int64_t channel = begin;
        for (; channel + WIDTH <= end; channel += WIDTH)
            conv_forward_block<TAPS, true>(args, prepared, sample, channel, first, tokens, WIDTH);
        if (channel < end)
            conv_forward_block<TAPS, false>(args, prepared, sample, channel, first, tokens, end - channel);
    }
}

void conv_forward(const ConvArgs& args, const float* prepared, const Task& task) {
    if (args.taps == 4)
        conv_forward_taps<4>(args, prepared, task);
    else
        conv_forward_taps<0>(args, prepared, task);
}

// `scratch` holds CONV_CHUNK + taps vectors: gradients of the convolution before its SiLU. A chunk's first tokens also
// pass gradients to the chunk before it, which computes them again.
template <int TAPS, bool FULL>
INLINE void conv_backward_block(const ConvArgs& args, const float* prepared, int64_t sample, int64_t channel,
                                int64_t first, int64_t rest, Vec* scratch, float* sums) {
    const int64_t taps = TAPS ? TAPS : args.taps, width = padded(args.channels), count = FULL ? WIDTH : rest;
    constexpr int64_t chunk = CONV_CHUNK<TAPS>;
    const int64_t tokens = least(args.length - first, chunk), seen = least(args.length - first, chunk + taps - 1);
    const Row x = row(args.x, args, sample, first, channel), to = row(args.grad_x, args, sample, first, channel);
    const Row grad = row(args.grad_out, args, sample, first, channel);
    convolve<TAPS>(args, prepared + channel, x, first, seen, count, scratch);
    for (int64_t t = 0; t < seen; ++t) {
        const Vec p = scratch[t], s = sigmoid(p);
        scratch[t] = load_part(grad.at + t * grad.step, count) * (s + p * s * (1.0f - s));
    }
    for (int64_t t = seen; t < tokens + taps - 1; ++t) scratch[t] = splat(0.0f);
    if constexpr (TAPS == 0) {
        wide_gradients(args, prepared + channel, x, to, first, tokens, count, scratch, sums + channel);
    } else {
        for (int64_t t = 0; t < tokens; ++t) {
            Vec sum = args.accumulate_x ? load_part(to.at + t * to.step, count) : splat(0.0f);
            for (int64_t k = 0; k < taps; ++k)
                sum += load(prepared + channel + (taps - 1 - k) * width) * scratch[t + k];
            store_part(to.at + t * to.step, sum, count);
        }
        Vec total[TAPS + 1], back[TAPS];  // back[k] is x, k tokens back
        for (int k = 0; k <= TAPS; ++k) total[k] = load(sums + (TAPS - k) * width + channel);
        for (int k = 1; k < TAPS; ++k) back[k - 1] = k <= first ? load_part(x.at - k * x.step, count) : splat(0.0f);
        for (int64_t t = 0; t < tokens; ++t) {
            for (int k = TAPS - 1; k > 0; --k) back[k] = back[k - 1];
            back[0] = load_part(x.at + t * x.step, count);
            total[0] += scratch[t];
            for (int k = 0; k < TAPS; ++k) total[k + 1] += scratch[t] * back[k];
        }
        for (int k = 0; k <= TAPS; ++k) store(sums + (TAPS - k) * width + channel, total[k]);
    }
}

template <int TAPS>
INLINE void conv_backward_taps(const ConvArgs& args, const float* prepared, const Task& task, Vec* scratch,
                               float* sums) {
    const auto [sample, begin, end] = task;
    for (int64_t first = 0; first < args.length; first += CONV_CHUNK<TAPS>) {
        int64_t channel = begin;
        for (; channel + WIDTH <= end; channel += WIDTH)
            conv_backward_block<TAPS, true>(args, prepared, sample, channel, first, WIDTH, scratch, sums);
        if (channel < end)
            conv_backward_block<TAPS, false>(args, prepared, sample, channel, first, end - channel, scratch, sums);
    }
}

// Adds to `sums`, of this sample: (taps + 1, padded channels), the gradients of the taps and of the bias.
void conv_backward(const ConvArgs& args, const float* prepared, const Task& task, float* scratch, float* sums) {
    if (args.taps == 4)
        conv_backward_taps<4>(args, prepared, task, (Vec*)scratch, sums);
    else
        conv_backward_taps<0>(args, prepared, task, (Vec*)scratch, sums);
}
