// Package ketama places keys on servers as libmemcached does by
// KETAMA_WEIGHTED, so that clients of all languages read each other's keys: a
// server has points on a ring, about as many as its weight asks for, and a key
// belongs to the server of the first point at or after its own.
package ketama

import (
	"crypto/md5"
	"encoding/binary"
	"slices"
	"strconv"
)

// Server is a server by what places its points. The host is taken as written: to
// libmemcached too, 127.0.0.1 and localhost, ::1 and [::1] are different servers.
type Server struct {
	Host   string // or the path of a Unix socket
	Port   uint16 // 0 for a Unix socket
	Weight uint32 // 0 counts as 1
}

// Ring is a list of servers. It never changes.
type Ring struct {
	// A point and, in the lower half, the place of its server in the list: where
	// points are equal, the earlier server's comes first.
	points []uint64
}

// Usable reports whether there is MD5, which panics under GODEBUG=fips140=only.
func Usable() (usable bool) {
	defer func() { usable = recover() == nil }()
	md5.Sum(nil)
	return true
}

// New returns the ring of servers, which are distinct and at least one. One whose
// weight is less than about a fortieth of the average gets no point, and no key.
func New(servers []Server) *Ring {
	r := new(Ring)
	if len(servers) == 1 {
		return r
	}
	var total uint64
	for _, s := range servers {
		total += uint64(s.weight())
	}
	for i, s := range servers {
		name := s.Host
		if s.Port != 11211 {
			name += ":" + strconv.Itoa(int(s.Port))
		}
		for d := range digests(s.weight(), total, len(servers)) {
			sum := md5.Sum([]byte(name + "-" + strconv.Itoa(d)))
			for p := 0; p < len(sum); p += 4 {
				r.points = append(r.points, point(sum[p:])|uint64(i))
			}
		}
	}
	slices.Sort(r.points)
	return r
}

func (s Server) weight() uint32 { return max(s.Weight, 1) }

// digests returns how many a server has, each of which is four points: 40 on
// average. It counts in float32, as libmemcached does: of 47 servers with the
// same weight each has 39. Without the conversions Go might round less often.
// libmemcached adds 1e-10 in the end, which is too little to change a float32
// that is 1 or more, or all but 1.
func digests(weight uint32, total uint64, servers int) int {
	share := float32(weight) / float32(total)
	return int(float32(float32(share*40) * float32(servers)))
}

// Pick returns the place in the list of the server that key belongs to.
func (r *Ring) Pick(key string) int {
	if len(r.points) == 0 {
		return 0
	}
	var buf [250]byte // keys are no longer; one that is costs an allocation
	sum := md5.Sum(append(buf[:0], key...))
	i, _ := slices.BinarySearch(r.points, point(sum[:]))
	if i == len(r.points) {
		i = 0
	}
	return int(uint32(r.points[i]))
}

// point returns the point in the first bytes of digest, in the upper half.
func point(digest []byte) uint64 { return uint64(binary.LittleEndian.Uint32(digest)) << 32 }
