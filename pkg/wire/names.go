package wire

import (
	"fmt"
	"strings"
)

// AppendNames appends domain names in the encoding of RFC 1035 §3.1, one after
// another and without compression, as DHCPv6 option 24 (RFC 8415 §10) and the
// DNSSL option want them. A trailing dot is allowed. The error names the first
// name that has an empty or over-long label or is itself longer than 255
// bytes.
func AppendNames(b []byte, names ...string) ([]byte, error) {
	for _, name := range names {
		at := len(b)
		for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
			if err := checkLabel(name, label); err != nil {
				return nil, err
			}
			b = append(b, uint8(len(label)))
			b = append(b, label...)
		}
		b = append(b, 0)
		if len(b)-at > 255 {
			return nil, fmt.Errorf("encode domain name %q: longer than 255 bytes", name)
		}
	}
	return b, nil
}

// AppendNamesCompressed is AppendNames with the compression pointers of RFC
// 1035 §4.1.4, as DHCPv4 option 119 allows (RFC 3397 §2). Pointers count from
// where b ended.
func AppendNamesCompressed(b []byte, names ...string) ([]byte, error) {
	base := len(b)
	seen := map[string]int{} // suffix -> offset from base
	for _, name := range names {
		if _, err := AppendNames(nil, name); err != nil {
			return nil, err
		}
		rest := strings.TrimSuffix(name, ".")
		for {
			suffix := strings.ToLower(rest)
			if at, ok := seen[suffix]; ok {
				b = append(b, 0xc0|uint8(at>>8), uint8(at))
				break
			}
			if at := len(b) - base; at < 1<<14 {
				seen[suffix] = at
			}
			label, more, ok := strings.Cut(rest, ".")
			b = append(b, uint8(len(label)))
			b = append(b, label...)
			if !ok {
				b = append(b, 0)
				break
			}
			rest = more
		}
	}
	return b, nil
}

func checkLabel(name, label string) error {
	if label == "" {
		return fmt.Errorf("encode domain name %q: empty label", name)
	}
	if len(label) > 63 {
		return fmt.Errorf("encode domain name %q: label %q is longer than 63 bytes", name, label)
	}
	return nil
}
