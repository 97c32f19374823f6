// The encoder's kernels, compiled by NVRTC for one model: texts lie end to end, and nothing pads them.
//
// No header is included: half numbers are their bits, and what C++ lacks is written in PTX.
// Sums are in f32. Needs compute capability 8.0 (asynchronous copies, m16n8k16 products).
//
// Defined when compiled: WIDTH, HEADS, ACTIVATION (0 exact GELU, 1 GELU by tanh, 2 ReLU), BF16, HOPPER
// (whether there is wgmma), and the tiles of products: LARGE, SMALL and TINY, each with its _THREADS.

typedef unsigned int u32;
typedef unsigned short half16;

#define HEAD (WIDTH / HEADS)
#define INFINITE __int_as_float(0x7f800000)

// ---- numbers ----

__device__ __forceinline__ float2 unpack(u32 v) {
    float2 r;
#if BF16
    r.x = __uint_as_float(v << 16);
    r.y = __uint_as_float(v & 0xffff0000u);
#else
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
        : "=f"(r.x), "=f"(r.y) : "r"(v));
#endif
    return r;
}

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 r;
#if BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#endif
    return r;
}

// The sums of two pairs.
__device__ __forceinline__ u32 added(u32 a, u32 b) {
    const float2 x = unpack(a), y = unpack(b);
    return pack(x.x + y.x, x.y + y.y);
}

__device__ __forceinline__ float exp2_of(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

__device__ __forceinline__ float reciprocal(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

__device__ __forceinline__ float activate(float x) {
#if ACTIVATION == 0
    // erf by Abramowitz and Stegun, 7.1.26: off by 1.5e-7 at most.
    const float z = fabsf(x) * 0.70710678f;
    const float t = reciprocal(1.0f + 0.3275911f * z);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const float tail = p * t * exp2_of(-1.44269504f * z * z);
    return 0.5f * (x + fabsf(x) * (1.0f - tail));
#elif ACTIVATION == 1
    const float inner = 0.79788456f * (x + 0.044715f * x * x * x);
    return x * reciprocal(1.0f + exp2_of(-2.88539008f * inner));
#else
    // So that what is no number stays none.
    return x < 0.0f ? 0.0f : x;
#endif
}

// ---- the tensor cores and what feeds them ----

__device__ __forceinline__ u32 shared_address(const void* p) {
    u32 r;
    asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(r) : "l"(p));
    return r;
}

// Copies 16 bytes, of which the first `n_bytes` are there and the rest zeros.
__device__ __forceinline__ void copy(u32 to, const void* from, int n_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n_bytes)
                 : "memory");
}

__device__ __forceinline__ void copy(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int LEFT>
__device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void load_transposed(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if BF16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- products ----

enum { PLAIN = 0, ACTIVATED = 1, ADDED = 2 };

// Where a chunk of 8 numbers lies in a tile with this many chunks in a row, so that 8 rows of one
// column of chunks lie in different banks. For 8 chunks it is what wgmma calls a swizzle of 128 bytes.
template <int CHUNKS>
__device__ __forceinline__ u32 place(int row, int chunk) {
    const int turn = CHUNKS >= 8 ? (row & 7) : ((row >> 1) & 3);
    return (u32)(row * CHUNKS + (chunk ^ turn)) * 16;
}

// Starts to copy a tile of ROWS rows and BK columns of a matrix with k columns.
template <int ROWS, int BK, int THREADS>
__device__ __forceinline__ void fetch(u32 to, const half16* from, int k) {
#pragma unroll
    for (int i = 0; i < ROWS * BK / 8 / THREADS; i++) {
        const int at = threadIdx.x + i * THREADS, row = at / (BK / 8), chunk = at % (BK / 8);
        copy(to + place<BK / 8>(row, chunk), from + (size_t)row * k + chunk * 8);
    }
}

// The steps of a product along its inner dimension, of which STAGES - 1 are on their way while one
// is multiplied.
template <int BM, int BN, int BK, int STAGES, int THREADS>
struct Steps {
    u32 base;
    // Where the block's rows of both begin.
    const half16* x;
    const half16* matrix;
    int k;

    // Where a step's tiles lie: of x, and behind it of the matrix.
    __device__ __forceinline__ u32 at(int step) const {
        return base + (step % STAGES) * ((BM + BN) * BK * 2);
    }

    // Starts to copy a step, if there are so many; a group of copies for each, or for none.
    __device__ __forceinline__ void fetch_if_any(int step) const {
        if (step < k / BK) {
            fetch<BM, BK, THREADS>(at(step), x + step * BK, k);
            fetch<BN, BK, THREADS>(at(step) + BM * BK * 2, matrix + step * BK, k);
        }
        commit();
    }

    __device__ __forceinline__ void begin() const {
#pragma unroll
        for (int step = 0; step < STAGES - 1; step++) fetch_if_any(step);
    }
};

// Writes 16 rows of a warp's sums, through memory of its own so that whole rows are written at once.
template <int WN, int WHAT>
__device__ __forceinline__ void finish(const float (&sums)[WN / 8][4], half16* own, const float* bias,
                                       const half16* rows, half16* to, size_t row0, int column0, int n) {
    constexpr int STRIDE = WN + 8;
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < WN / 8; j++) {
        const int column = j * 8 + (lane & 3) * 2;
        const float2 shift = *(const float2*)(bias + column0 + column);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float low = sums[j][h * 2] + shift.x, high = sums[j][h * 2 + 1] + shift.y;
            if (WHAT == ACTIVATED) {
                low = activate(low);
                high = activate(high);
            }
            *(u32*)(own + (h * 8 + (lane >> 2)) * STRIDE + column) = pack(low, high);
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < WN / 16; i++) {
        const int at = lane + i * 32, row = at / (WN / 8), chunk = at % (WN / 8);
        const size_t cell = (row0 + row) * n + column0 + chunk * 8;
        uint4 x = *(const uint4*)(own + row * STRIDE + chunk * 8);
        if (WHAT == ADDED) {
            const uint4 y = *(const uint4*)(rows + cell);
            x.x = added(x.x, y.x);
            x.y = added(x.y, y.y);
            x.z = added(x.z, y.z);
            x.w = added(x.w, y.w);
        }
        *(uint4*)(to + cell) = x;
    }
    __syncwarp();
}

// to[m, n] = what(x[m, k] * matrix[n, k] + bias[n]), with rows[m, n] added at last or not.
//
// The grid covers n by columns of blocks and m by rows of blocks; buffers are as long as the grid.
template <int BM, int BN, int BK, int WM, int WN, int STAGES, int WHAT>
__device__ __forceinline__ void product(const half16* __restrict__ x,
                                        const half16* __restrict__ matrix,
                                        const float* __restrict__ bias,
                                        const half16* __restrict__ rows,
                                        half16* __restrict__ to, int n, int k) {
    constexpr int THREADS = (BM / WM) * (BN / WN) * 32;
    constexpr int MI = WM / 16, NI = WN / 8;
    constexpr u32 X_BYTES = BM * BK * 2;
    extern __shared__ uint4 shared[];
    const u32 base = shared_address(shared);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int wm = (warp / (BN / WN)) * WM, wn = (warp % (BN / WN)) * WN;
    const int n_steps = k / BK;
    const Steps<BM, BN, BK, STAGES, THREADS> steps = {
        base, x + (size_t)blockIdx.y * BM * k, matrix + (size_t)blockIdx.x * BN * k, k};

    float sums[MI][NI][4] = {};
    steps.begin();
    for (int step = 0; step < n_steps; step++) {
        wait<STAGES - 2>();
        __syncthreads();
        steps.fetch_if_any(step + STAGES - 1);
        const u32 at = steps.at(step);
#pragma unroll
        for (int kk = 0; kk < BK / 16; kk++) {
            u32 a[MI][4], b[NI / 2][4];
#pragma unroll
            for (int i = 0; i < MI; i++)
                load_matrices(a[i], at + place<BK / 8>(wm + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
            for (int j = 0; j < NI / 2; j++)
                load_matrices(b[j], at + X_BYTES + place<BK / 8>(wn + j * 16 + (lane & 7) + (lane >> 4) * 8,
                                                                 kk * 2 + ((lane >> 3) & 1)));
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int j = 0; j < NI; j++)
                    multiply(sums[i][j], a[i], b[j / 2][(j % 2) * 2], b[j / 2][(j % 2) * 2 + 1]);
        }
    }

    wait<0>();
    __syncthreads();
    half16* own = (half16*)shared + warp * 16 * (WN + 8);
#pragma unroll
    for (int i = 0; i < MI; i++)
        finish<WN, WHAT>(sums[i], own, bias, rows, to, (size_t)blockIdx.y * BM + wm + i * 16,
                         blockIdx.x * BN + wn, n);
}

#if HOPPER
// What wgmma is told of a tile of rows of 128 bytes at this address.
__device__ __forceinline__ unsigned long long describe(u32 at) {
    return (unsigned long long)((at & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

#define QUAD(J) "+f"(c[J][0]), "+f"(c[J][1]), "+f"(c[J][2]), "+f"(c[J][3])

// 64 rows and 128 columns by a warp group, from shared memory, asynchronously.
__device__ __forceinline__ void multiply_group(float (&c)[16][4], unsigned long long a, unsigned long long b) {
    asm volatile(
        "{ .reg .pred p; setp.eq.u32 p, 0, 0; "
#if BF16
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
#else
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
#endif
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, 0; }"
        : QUAD(0), QUAD(1), QUAD(2), QUAD(3),
          QUAD(4), QUAD(5), QUAD(6), QUAD(7),
          QUAD(8), QUAD(9), QUAD(10), QUAD(11),
          QUAD(12), QUAD(13), QUAD(14), QUAD(15)
        : "l"(a), "l"(b));
}

// The same by warp groups, each of WM rows and all columns.
template <int BM, int BN, int BK, int WM, int WN, int STAGES, int WHAT>
__device__ __forceinline__ void product_of_groups(const half16* __restrict__ x,
                                                  const half16* __restrict__ matrix,
                                                  const float* __restrict__ bias,
                                                  const half16* __restrict__ rows,
                                                  half16* __restrict__ to, int n, int k) {
    static_assert(BN == 128 && BK == 64 && WN == 128 && WM % 64 == 0, "the shape of wgmma and its swizzle");
    constexpr int MI = WM / 64, THREADS = BM / WM * 128;
    constexpr u32 X_BYTES = BM * BK * 2;
    extern __shared__ uint4 shared[];
    // Tiles start at multiples of 1024.
    const u32 unaligned = shared_address(shared), base = (unaligned + 1023) & ~1023u;
    const int warp = threadIdx.x >> 5;
    const int wm = (warp / 4) * WM;
    const int n_steps = k / BK;
    const Steps<BM, BN, BK, STAGES, THREADS> steps = {
        base, x + (size_t)blockIdx.y * BM * k, matrix + (size_t)blockIdx.x * BN * k, k};

    float sums[MI][16][4] = {};
    steps.begin();
    for (int step = 0; step < n_steps; step++) {
        wait<STAGES - 2>();
        // What was copied is seen by the tensor cores, which read on a way of their own.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        const u32 at = steps.at(step);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int kk = 0; kk < BK / 16; kk++)
#pragma unroll
            for (int i = 0; i < MI; i++)
                multiply_group(sums[i], describe(at + (wm + i * 64) * 128 + kk * 32),
                               describe(at + X_BYTES + kk * 32));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        steps.fetch_if_any(step + STAGES - 1);
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }

    wait<0>();
    __syncthreads();
    half16* own = (half16*)((char*)shared + (base - unaligned)) + warp * 16 * (BN + 8);
#pragma unroll
    for (int i = 0; i < MI; i++)
        finish<BN, WHAT>(sums[i], own, bias, rows, to,
                         (size_t)blockIdx.y * BM + wm + i * 64 + (warp % 4) * 16, blockIdx.x * BN, n);
}
#endif

#define PRODUCT(NAME, HOW, TILES, THREADS, BLOCKS, WHAT)                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                 \
        NAME(const half16* x, const half16* matrix, const float* bias, const half16* rows,        \
             half16* to, int n, int k) {                                                          \
        HOW<TILES, WHAT>(x, matrix, bias, rows, to, n, k);                                        \
    }

// Two blocks of groups share a processor, so that one multiplies while the other reads or writes.
#if HOPPER
PRODUCT(plain_large, product_of_groups, LARGE, LARGE_THREADS, 2, PLAIN)
PRODUCT(activated_large, product_of_groups, LARGE, LARGE_THREADS, 2, ACTIVATED)
PRODUCT(added_large, product_of_groups, LARGE, LARGE_THREADS, 2, ADDED)
#else
PRODUCT(plain_large, product, LARGE, LARGE_THREADS, 1, PLAIN)
PRODUCT(activated_large, product, LARGE, LARGE_THREADS, 1, ACTIVATED)
PRODUCT(added_large, product, LARGE, LARGE_THREADS, 1, ADDED)
#endif
PRODUCT(plain_small, product, SMALL, SMALL_THREADS, 1, PLAIN)
PRODUCT(activated_small, product, SMALL, SMALL_THREADS, 1, ACTIVATED)
PRODUCT(added_small, product, SMALL, SMALL_THREADS, 1, ADDED)
PRODUCT(plain_tiny, product, TINY, TINY_THREADS, 1, PLAIN)
PRODUCT(activated_tiny, product, TINY, TINY_THREADS, 1, ACTIVATED)
PRODUCT(added_tiny, product, TINY, TINY_THREADS, 1, ADDED)

// ---- rows: a warp for each token, a lane for every 32nd pair of numbers ----

#define PAIRS (WIDTH / 64)

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ void normalise(float2 (&x)[PAIRS], const float* scale, const float* shift,
                                          float eps, int lane, u32* to) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) sum += x[i].x + x[i].y;
    const float mean = sum_of_warp(sum) * (1.0f / WIDTH);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        x[i].x -= mean;
        x[i].y -= mean;
        squares += x[i].x * x[i].x + x[i].y * x[i].y;
    }
    const float by = rsqrtf(sum_of_warp(squares) * (1.0f / WIDTH) + eps);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const float2 a = *(const float2*)(scale + (lane + i * 32) * 2);
        const float2 b = *(const float2*)(shift + (lane + i * 32) * 2);
        to[lane + i * 32] = pack(x[i].x * by * a.x + b.x, x[i].y * by * a.y + b.y);
    }
}

// Of each token its word, place and type, added and normalised.
extern "C" __global__ void __launch_bounds__(128)
    embed_rows(const u32* words, const u32* places, const u32* types, const int* word, const int* place_of,
          const int* type, const float* scale, const float* shift, float eps, u32* to, int n_tokens) {
    const int token = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (token >= n_tokens) return;
    const size_t a = (size_t)word[token] * (WIDTH / 2), b = (size_t)place_of[token] * (WIDTH / 2);
    float2 x[PAIRS];
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const float2 p = unpack(words[a + lane + i * 32]), q = unpack(places[b + lane + i * 32]);
        x[i].x = p.x + q.x;
        x[i].y = p.y + q.y;
    }
    if (types != nullptr) {
        const size_t c = (size_t)type[token] * (WIDTH / 2);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const float2 p = unpack(types[c + lane + i * 32]);
            x[i].x += p.x;
            x[i].y += p.y;
        }
    }
    normalise(x, scale, shift, eps, lane, to + (size_t)token * (WIDTH / 2));
}

extern "C" __global__ void __launch_bounds__(128)
    norm_rows(const u32* from, const float* scale, const float* shift, float eps, u32* to, int n_tokens) {
    const int token = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (token >= n_tokens) return;
    float2 x[PAIRS];
#pragma unroll
    for (int i = 0; i < PAIRS; i++) x[i] = unpack(from[(size_t)token * (WIDTH / 2) + lane + i * 32]);
    normalise(x, scale, shift, eps, lane, to + (size_t)token * (WIDTH / 2));
}

// ---- attention ----

// Of one head, 16 tokens of a text for each warp, which attend to all of it. Keys and values come
// in tiles of 16 * WARPS tokens, the next one under way. A softmax is of powers of two: queries
// carry the logarithm, and the root of a head's width.
template <int WARPS>
__device__ __forceinline__ void attend(const half16* __restrict__ qkv, const int4* __restrict__ blocks,
                                       half16* __restrict__ to) {
    constexpr int KEYS = 16 * WARPS, ROW = HEAD + 8, CHUNKS = HEAD / 8;
    __shared__ __align__(16) half16 tiles[2][2][KEYS][ROW];
    const int4 block = blocks[blockIdx.x];
    const int start = block.x, length = block.y;
    const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
    const int first = block.z + warp * 16;
    const half16* from = qkv + (size_t)start * (3 * WIDTH) + blockIdx.y * HEAD;

    auto fetch = [&](int tile) {
#pragma unroll
        for (int u = 0; u < CHUNKS; u++) {
            const int i = thread + u * WARPS * 32;
            const int chunk = i % CHUNKS, row = i / CHUNKS % KEYS, which = i / (CHUNKS * KEYS);
            const int key = tile * KEYS + row;
            // Beyond the text there are zeros: what lies there is another's, and may be no number.
            copy(shared_address(&tiles[tile & 1][which][row][chunk * 8]),
                 from + (size_t)min(key, length - 1) * (3 * WIDTH) + (1 + which) * WIDTH + chunk * 8,
                 key < length ? 16 : 0);
        }
    };

    u32 q[HEAD / 16][4];
#pragma unroll
    for (int i = 0; i < HEAD / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int row = min(first + (lane >> 2) + (j & 1) * 8, length - 1);
            q[i][j] = *(const u32*)(from + (size_t)row * (3 * WIDTH) + i * 16 + (lane & 3) * 2 + (j >> 1) * 8);
        }

    float sums[HEAD / 8][4] = {};
    float most[2] = {-INFINITE, -INFINITE}, total[2] = {0.0f, 0.0f};
    const int n_tiles = (length + KEYS - 1) / KEYS;
    fetch(0);
    commit();
    for (int tile = 0; tile < n_tiles; tile++) {
        if (tile + 1 < n_tiles) fetch(tile + 1);
        commit();
        wait<1>();
        __syncthreads();
        if (first < length) {
            const half16(&keys)[KEYS][ROW] = tiles[tile & 1][0];
            const half16(&values)[KEYS][ROW] = tiles[tile & 1][1];
            float s[KEYS / 8][4] = {};
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
                for (int i = 0; i < HEAD / 16; i++) {
                    u32 b[4];
                    load_matrices(b, shared_address(&keys[j * 16 + (lane & 7) + (lane >> 4) * 8]
                                                         [i * 16 + ((lane >> 3) & 1) * 8]));
                    multiply(s[j * 2], q[i], b[0], b[1]);
                    multiply(s[j * 2 + 1], q[i], b[2], b[3]);
                }
            if ((tile + 1) * KEYS > length) {
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (tile * KEYS + j * 8 + (lane & 3) * 2 + (i & 1) >= length) s[j][i] = -INFINITE;
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float peak = most[h];
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) peak = fmaxf(peak, fmaxf(s[j][h * 2], s[j][h * 2 + 1]));
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
                const float by = exp2_of(most[h] - peak);
                most[h] = peak;
                float sum = 0.0f;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) {
                    s[j][h * 2] = exp2_of(s[j][h * 2] - peak);
                    s[j][h * 2 + 1] = exp2_of(s[j][h * 2 + 1] - peak);
                    sum += s[j][h * 2] + s[j][h * 2 + 1];
                }
                total[h] = total[h] * by + sum;
#pragma unroll
                for (int d = 0; d < HEAD / 8; d++) {
                    sums[d][h * 2] *= by;
                    sums[d][h * 2 + 1] *= by;
                }
            }
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                const u32 p[4] = {pack(s[j * 2][0], s[j * 2][1]), pack(s[j * 2][2], s[j * 2][3]),
                                  pack(s[j * 2 + 1][0], s[j * 2 + 1][1]),
                                  pack(s[j * 2 + 1][2], s[j * 2 + 1][3])};
#pragma unroll
                for (int d = 0; d < HEAD / 16; d++) {
                    u32 b[4];
                    load_transposed(b, shared_address(&values[j * 16 + (lane & 15)][d * 16 + (lane >> 4) * 8]));
                    multiply(sums[d * 2], p, b[0], b[1]);
                    multiply(sums[d * 2 + 1], p, b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
        total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
        const int row = first + (lane >> 2) + h * 8;
        if (row < length) {
            const float by = 1.0f / total[h];
#pragma unroll
            for (int d = 0; d < HEAD / 8; d++)
                *(u32*)(to + (size_t)(start + row) * WIDTH + blockIdx.y * HEAD + d * 8 + (lane & 3) * 2) =
                    pack(sums[d][h * 2] * by, sums[d][h * 2 + 1] * by);
        }
    }
}

extern "C" __global__ void __launch_bounds__(32)
    attend_short(const half16* qkv, const int4* blocks, half16* to) { attend<1>(qkv, blocks, to); }

extern "C" __global__ void __launch_bounds__(128)
    attend_long(const half16* qkv, const int4* blocks, half16* to) { attend<4>(qkv, blocks, to); }

// ---- what is read back, in f32 ----

enum { MEAN = 0, MAX = 1, FIRST = 2, LAST = 3 };

__device__ __forceinline__ float larger(float a, float b) { return b > a || b != b ? b : a; }

// A block for each text and 64 columns; its 8 warps share the tokens.
extern "C" __global__ void __launch_bounds__(256)
    pool_texts(const u32* from, const int* starts, float* to, int what) {
    __shared__ float2 parts[8][32];
    const int text = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int start = starts[text], end = starts[text + 1];
    const u32* column = from + blockIdx.y * 32 + lane;
    float2 x;
    x.x = x.y = what == MAX ? -INFINITE : 0.0f;
    if (what >= FIRST) {
        if (warp == 0) x = unpack(column[(size_t)(what == FIRST ? start : end - 1) * (WIDTH / 2)]);
    } else {
#pragma unroll 4
        for (int token = start + warp; token < end; token += 8) {
            const float2 y = unpack(column[(size_t)token * (WIDTH / 2)]);
            x.x = what == MAX ? larger(x.x, y.x) : x.x + y.x;
            x.y = what == MAX ? larger(x.y, y.y) : x.y + y.y;
        }
    }
    parts[warp][lane] = x;
    __syncthreads();
    if (warp != 0) return;
#pragma unroll
    for (int i = 1; i < 8; i++) {
        const float2 y = parts[i][lane];
        x.x = what == MAX ? larger(x.x, y.x) : x.x + y.x;
        x.y = what == MAX ? larger(x.y, y.y) : x.y + y.y;
    }
    if (what == MEAN) {
        const float by = 1.0f / (float)(end - start);
        x.x *= by;
        x.y *= by;
    }
    *(float2*)(to + (size_t)text * WIDTH + blockIdx.y * 64 + lane * 2) = x;
}

extern "C" __global__ void __launch_bounds__(256) widen_rows(const u32* from, float2* to, int n_pairs) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n_pairs) to[i] = unpack(from[i]);
}
