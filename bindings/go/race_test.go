//go:build race

package reasoningrpc

const underRace = true
