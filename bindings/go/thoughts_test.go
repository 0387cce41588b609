package reasoningrpc

import (
	"slices"
	"testing"
)

// Gists follow thoughts, the thoughts go, and a saved sequence goes on as it would have.
func TestLightThinker(t *testing.T) {
	expected := readGolden(t)
	engine := openEngine(t)
	var delimiters []uint32
	for id := uint32(5); id < 96; id += 5 {
		delimiters = append(delimiters, id)
	}
	for _, resume := range []uint32{3, NoToken} {
		following := []uint32{1, 2}
		if resume != NoToken {
			following = append(following, resume)
		}
		s := newSequence(t, engine, expected.Prompt, greedy, func(o *SequenceOptions) {
			o.Policy, o.Delimiters, o.Gists, o.Resume = PolicyLightThinker, delimiters, []uint32{1, 2}, resume
		})
		drawn := generate(t, s, 80)
		saved, err := s.Save()
		must(t, err)
		restored, err := engine.Restore(saved)
		must(t, err)
		defer restored.Close()
		more := generate(t, s, 60)
		if found := generate(t, restored, 60); !slices.Equal(found, more) {
			t.Errorf("expected %v\nfound    %v", more, found)
		}
		thoughts, text := 0, slices.Clone(expected.Prompt)
		for _, token := range slices.Concat(drawn, more) {
			text = append(text, token)
			if slices.Contains(delimiters, token) {
				text = append(text, following...)
				thoughts++
			}
		}
		mustTokens(t, s, text)
		stats, err := s.Stats()
		must(t, err)
		if thoughts < 3 || stats.Compressions+1 < thoughts || stats.CachePeakBytes >= stats.CacheUncompressedBytes {
			t.Errorf("%d thoughts, %+v", thoughts, stats)
		}
	}
	for _, wrong := range []func(*SequenceOptions){
		func(o *SequenceOptions) { o.Delimiters = delimiters },
		func(o *SequenceOptions) { o.Gists = []uint32{1} },
		func(o *SequenceOptions) { o.Delimiters, o.Gists = delimiters, []uint32{96} },
		func(o *SequenceOptions) { o.Delimiters, o.Gists, o.Resume = delimiters, []uint32{1}, 5 },
	} {
		_, err := engine.NewSequence(func(o *SequenceOptions) { o.Policy = PolicyLightThinker }, wrong)
		mustBe(t, err, ErrInvalidArgument)
	}
	_, peak, err := engine.PeakCacheBytes(10, 100, func(o *SequenceOptions) {
		o.Policy, o.Delimiters, o.Gists = PolicyLightThinker, delimiters, []uint32{1}
	})
	must(t, err)
	_, whole, err := engine.PeakCacheBytes(10, 100, func(o *SequenceOptions) { o.Policy = PolicyNone })
	if must(t, err); peak != whole {
		t.Errorf("expected %d, found %d", whole, peak)
	}
}
