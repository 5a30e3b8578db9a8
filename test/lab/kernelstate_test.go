package lab

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSortWithin(t *testing.T) {
	const before = `# ip -d -4 route show
b
a
# ip -d -6 route show
d
c
# ip -4 rule show
2
1
# ip neighbour show
# nft
set s {
	elements = { "y" . 2,
		     "x" . 1 }
}
`
	const want = `# ip -d -4 route show
a
b
# ip -d -6 route show
c
d
# ip -4 rule show
2
1
# ip neighbour show
# nft
set s {
	elements = { "x" . 1,
"y" . 2
 }
}
`
	got := sortWithin(sortWithin(before, nftElements, ","), unordered, "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
