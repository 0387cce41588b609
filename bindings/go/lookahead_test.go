package reasoningrpc

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// lookahead is a random shape for the policies that look ahead, and its frequencies.
func lookahead(random *rand.Rand) (shape, []float32) {
	s := newShape(random)
	s.ratio, s.interval = 2, 2*(4+random.Uint32N(10))
	s.window = 1 + random.Uint32N(s.interval-1)
	s.room = 0
	for row, prompt := range s.prompts {
		s.lengths[row] = prompt + int32(s.interval+s.window)
		s.done[row] = 0
		s.room = max(s.room, int(s.lengths[row]))
	}
	frequencies := make([]float32, s.headDim/2)
	for i := range frequencies {
		frequencies[i] = float32(math.Pow(10000, -2*float64(i)/float64(s.headDim)))
	}
	return s, frequencies
}

// expectedScores are the mean attention of one row's queries to the candidates of a KV head, each rotated on by the
// interval, over all entries: in float64, from the definition.
func expectedScores(h *host[float32], s shape, frequencies, queries []float32, row, kvHead int) []float64 {
	length, group := int(s.lengths[row]), s.heads/s.kvHeads
	sums := make([]float64, length)
	for head := kvHead * group; head < (kvHead+1)*group; head++ {
		for token := range int(s.interval) {
			query := queries[((row*int(s.interval)+token)*s.heads+head)*s.headDim:][:s.headDim]
			on := make([]float64, s.headDim)
			for i, frequency := range frequencies {
				sin, cos := math.Sincos(float64(s.interval) * float64(frequency))
				a, b := float64(query[i]), float64(query[i+s.headDim/2])
				on[i], on[i+s.headDim/2] = a*cos-b*sin, a*sin+b*cos
			}
			weights, total := make([]float64, length), 0.0
			for entry := range weights {
				logit := 0.0
				for i, x := range h.key(row, kvHead, entry) {
					logit += on[i] * float64(x)
				}
				weights[entry] = math.Exp(logit / math.Sqrt(float64(s.headDim)))
				total += weights[entry]
			}
			for entry, weight := range weights {
				sums[entry] += weight / total / float64(group*int(s.interval))
			}
		}
	}
	return sums[s.prompts[row] : length-int(s.window)]
}

// What is kept are the candidates with the most attention of the next interval, and a merge changes what stays.
func TestLookahead(t *testing.T) {
	random := newRandom(t)
	for _, policy := range []Policy{PolicyLookahead, PolicyLookaheadMerge} {
		s, frequencies := lookahead(random)
		c := newCompressor(t, s.options(DTypeF32), func(o *CompressorOptions) {
			o.Policy, o.InvFreq = policy, frequencies
		})
		queries := make([]float32, s.rows*s.heads*int(s.interval)*s.headDim)
		for i := range queries {
			queries[i] = random.Float32()*2 - 1
		}
		window := c.Window(int(s.interval), TokenMajor, Float32(queries))
		filler := func() float32 { return random.Float32()*2 - 1 }
		for name, h := range hosts(random, s.rows, s.room, s.kvHeads, s.headDim, filler) {
			batch := h.batch(s.lengths, s.prompts, s.done)
			layer := h.layer(c, 0)
			_, err := c.Plan(layer, batch, &window)
			mustBe(t, err, ErrInvalidArgument) // no history
			layer.History = make([]float32, len(h.keyScales))
			plan, err := c.Plan(layer, batch, &window)
			must(t, err)
			at := 0
			for row := range s.rows {
				for kvHead := range s.kvHeads {
					scores := expectedScores(h, s, frequencies, queries, row, kvHead)
					order := make([]uint32, len(scores))
					for i := range order {
						order[i] = uint32(i)
					}
					slices.SortStableFunc(order, func(a, b uint32) int { return cmp.Compare(scores[b], scores[a]) })
					best := order[:s.interval/s.ratio]
					// Equal but for what float32 cannot tell apart.
					least := scores[best[len(best)-1]] * (1 - 1e-4)
					kept := plan.KeptSet(row, kvHead)
					for i, index := range kept {
						if scores[index] < least {
							t.Fatalf("%s: %v of %v was kept before %v", name, index, scores, best)
						}
						if found := float64(plan.History[at+i]); policy == PolicyLookahead && math.Abs(found/scores[index]-1) > 1e-4 {
							t.Errorf("%s: a history of %v, expected %v", name, found, scores[index])
						}
					}
					if len(kept) != len(best) {
						t.Fatalf("%s: expected %d, found %d", name, len(best), len(kept))
					}
					at += len(kept)
				}
			}
			merges := policy == PolicyLookaheadMerge
			if merges != (len(plan.Merges) > 0) || merges != (len(plan.KeyShifts) == len(plan.Kept)) ||
				merges != (len(plan.KeyDirections) == s.rows*s.kvHeads*s.headDim) {
				t.Fatalf("%s: %+v", name, plan)
			}

			// Planned and applied is compressed.
			other := *h
			other.keys, other.values = slices.Clone(h.keys), slices.Clone(h.values)
			compressed := other.layer(c, 0)
			compressed.History = make([]float32, len(h.keyScales))
			must(t, c.Apply(layer, batch, plan))
			done, err := c.Compress(compressed, batch, &window)
			must(t, err)
			if !slices.Equal(done.Kept, plan.Kept) || !slices.Equal(h.keys, other.keys) ||
				!slices.Equal(h.values, other.values) || !slices.Equal(layer.History, compressed.History) {
				t.Fatalf("%s: plan and apply differ from compress", name)
			}
			if slices.Max(layer.History) <= 0 {
				t.Errorf("%s: no history was written", name)
			}
			if plan.History = plan.History[1:]; len(plan.History) > 0 {
				mustBe(t, c.Apply(layer, batch, plan), ErrInvalidArgument)
			}
		}
	}
	_, err := NewCompressor(shape{heads: 1, kvHeads: 1, headDim: 8, interval: 32, window: 8, ratio: 4}.options(DTypeF32),
		func(o *CompressorOptions) { o.Policy, o.InvFreq = PolicyLookahead, make([]float32, 5) })
	mustBe(t, err, ErrInvalidArgument)
}
