package kernel

import (
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/plan"
)

// TestSkeletonVersion: whoever changes the table changes the version, else an
// upgraded host keeps the old table.
func TestSkeletonVersion(t *testing.T) {
	hash, err := skeletonHash()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(plan.Skeleton, "_"+hash) {
		t.Errorf("the table changed: make plan.Skeleton %q", "v1_"+hash)
	}
	if isMarker(plan.Skeleton) || !isMarker(plan.Skeleton+"_0123456789abcdef") {
		t.Error("the version is not told from a marker")
	}
	for _, c := range chains() {
		if isMarker(c.name) {
			t.Errorf("chain %s looks like a marker", c.name)
		}
	}
}
