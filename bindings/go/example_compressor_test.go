package reasoningrpc_test

import (
	"fmt"
	"log"
	"math"

	reasoningrpc "github.com/reasoning-rpc/reasoning-rpc/bindings/go"
)

// A serving system's own cache, in pages of 16 entries, is compressed where it lies.
func ExampleCompressor() {
	const (
		layers, heads, kvHeads, headDim = 2, 8, 2, 16
		blocks, blockEntries            = 32, 16
	)
	compressor, err := reasoningrpc.NewCompressor(func(o *reasoningrpc.CompressorOptions) {
		o.Heads, o.KVHeads, o.HeadDim, o.DType = heads, kvHeads, headDim, reasoningrpc.DTypeF32
		o.Interval, o.Window, o.Ratio = 64, 8, 4
	})
	if err != nil {
		log.Fatal(err)
	}
	defer compressor.Close()

	// Two sequences with a prompt of 10 entries each, and 72 and 100 generated ones.
	lengths, prompts, compressions := []int32{82, 110}, []int32{10, 10}, []int32{0, 0}
	table := []int32{
		4, 9, 2, 7, 30, 11, -1, -1,
		1, 8, 3, 6, 5, 12, 20, -1,
	}
	due, err := compressor.Due(72, 0)
	if err != nil || !due {
		log.Fatal(due, err)
	}
	batch := reasoningrpc.Batch{
		Lengths: lengths, PromptLengths: prompts, Compressions: compressions,
		RowCount: 2, BlockTable: table, BlockTableStride: 8,
		BlockEntries: blockEntries, BlockCount: blocks,
	}
	var plan *reasoningrpc.Plan
	for layer := range layers {
		keys, values := invented(blocks*blockEntries*kvHeads*headDim), invented(blocks*blockEntries*kvHeads*headDim)
		queries := invented(2 * 8 * heads * headDim)
		pages := compressor.Layer(layer, blockEntries, reasoningrpc.TokenMajor, reasoningrpc.Float32(keys), reasoningrpc.Float32(values))
		window := compressor.Window(8, reasoningrpc.TokenMajor, reasoningrpc.Float32(queries))
		if plan, err = compressor.Compress(&pages, &batch, &window); err != nil {
			log.Fatal(err)
		}
	}
	// Every layer sets the same blocks free.
	fmt.Println("entries:", plan.NewLengths)
	fmt.Println("free blocks:", plan.FreedBlocks)
	// Output:
	// entries: [34 34]
	// free blocks: [7 30 11 6 5 12 20]
}

// invented numbers.
func invented(count int) []float32 {
	numbers := make([]float32, count)
	for i := range numbers {
		numbers[i] = float32(math.Sin(float64(i)))
	}
	return numbers
}
