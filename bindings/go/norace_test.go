//go:build !race

package reasoningrpc

const underRace = false
