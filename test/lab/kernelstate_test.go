package lab

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSortWithin(t *testing.T) {
	got := sortWithin("# ip neighbour show\nb\na\n# nft\nset s {\n\telements = { \"y\" . 2,\n\t\t     \"x\" . 1 }\n}\n", nftElements, ",")
	got = sortWithin(got, unordered, "\n")
	want := "# ip neighbour show\na\nb\n# nft\nset s {\n\telements = { \"x\" . 1,\n\"y\" . 2 }\n}\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
