// Package wait lets a test wait for a condition.
package wait

import (
	"testing"
	"time"
)

// interval is how often a condition is looked at.
const interval = 5 * time.Millisecond

// For waits until cond holds and fails the test after limit, which only bounds
// a test that would hang.
func For(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("waited %v for %s", limit, what)
		}
	}
}
