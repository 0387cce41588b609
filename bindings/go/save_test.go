package reasoningrpc

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A saved sequence goes on where it was, in the middle of a window, in another engine.
func TestSaveAndRestore(t *testing.T) {
	random := newRandom(t)
	expected := readGolden(t)
	engine, other := openEngine(t), openEngine(t)
	s := newSequence(t, engine, expected.Prompt, expected.drawn(9))
	at := uint64(1 + random.IntN(100))
	generate(t, s, at)
	saved, err := s.Save()
	must(t, err)
	again, err := s.Save()
	if must(t, err); !bytes.Equal(saved, again) {
		t.Error("saving twice gives other bytes")
	}
	path := filepath.Join(t.TempDir(), "saved")
	must(t, s.SaveFile(path))
	file, err := os.ReadFile(path)
	if must(t, err); !bytes.Equal(file, saved) {
		t.Error("the file has other bytes")
	}
	want := generate(t, s, 100)
	restored, err := other.Restore(saved)
	must(t, err)
	defer restored.Close()
	if found := generate(t, restored, 100); !slices.Equal(found, want) {
		t.Errorf("expected %v\nfound    %v", want, found)
	}
	fromFile, err := other.RestoreFile(path)
	must(t, err)
	defer fromFile.Close()
	if found := generate(t, fromFile, 100); !slices.Equal(found, want) {
		t.Errorf("expected %v\nfound    %v", want, found)
	}

	_, err = engine.Restore(nil)
	mustBe(t, err, ErrState)
	mustNotRestore(t, engine, random, saved)
	_, err = engine.RestoreFile(path + "?")
	mustBe(t, err, ErrFile)
	mustBe(t, s.SaveFile(filepath.Join(path, "in a file")), ErrFile)
	mustBe(t, s.SaveFile("a\x00b"), ErrInvalidArgument)
	_, err = engine.RestoreFile("a\x00b")
	mustBe(t, err, ErrInvalidArgument)
	must(t, s.Close())
	_, err = s.Save()
	mustBe(t, err, ErrInvalidHandle)
}

// mustNotRestore damages what was saved.
func mustNotRestore(t *testing.T, engine *Engine, random *rand.Rand, saved []byte) {
	t.Helper()
	for range 50 {
		damaged := slices.Clone(saved)
		if random.IntN(2) == 0 {
			damaged = damaged[:random.IntN(len(damaged))]
		} else {
			damaged[random.IntN(len(damaged))] ^= 1 << random.UintN(8)
		}
		if s, err := engine.Restore(damaged); !errors.Is(err, ErrState) {
			t.Errorf("damaged bytes: %v", err)
			s.Close()
		}
	}
}
