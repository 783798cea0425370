package protocol

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestParseMeta(t *testing.T) {
	for line, want := range map[string]Meta{
		"HD":                         {Code: "HD"},
		"HD ":                        {Code: "HD"},
		"EN":                         {Code: "EN"},
		"NF":                         {Code: "NF"},
		"NS":                         {Code: "NS"},
		"EX":                         {Code: "EX"},
		"MN":                         {Code: "MN"},
		"HD t-1":                     {Code: "HD", TTL: -1},
		"HD t0":                      {Code: "HD"},
		"HD t3600 c7 f4294967295":    {Code: "HD", TTL: 3600, CAS: 7, Flags: 1<<32 - 1},
		"HD  t5  c6 ":                {Code: "HD", TTL: 5, CAS: 6},
		"HD c18446744073709551615":   {Code: "HD", CAS: 1<<64 - 1},
		"HD W Z X kkey Oopaque b t9": {Code: "HD", TTL: 9, Token: []byte("opaque")},
		"VA 0":                       {Code: "VA"},
		"VA 5 t-1 c3 f2":             {Code: "VA", Size: 5, TTL: -1, CAS: 3, Flags: 2},
		"VA 1073741824":              {Code: "VA", Size: 1 << 30},
	} {
		got, err := ParseMeta([]byte(line))
		assert.NoError(t, err, "%q", line)
		assert.Equal(t, want, got, "%q", line)
	}

	for _, line := range []string{
		"", " ", " HD", "hd", "H", "HDD", "XX", "OK", "END", "VALUE k 0 1", "HD\tt1",
		"VA", "VA ", "VA x", "VA -1", "VA +1", "VA t1", "VA  5", "VA 1073741825", "VA 18446744073709551616",
		"HD t", "HD tx", "HD t99999999999999999999", "HD c", "HD c-1", "HD c18446744073709551616",
		"HD f", "HD f4294967296", "HD f-1", "VA 1 fx",
	} {
		_, err := ParseMeta([]byte(line))
		assert.ErrorIs(t, err, ErrUnexpected, "%q", line)
	}

	for _, line := range []string{"ERROR", "CLIENT_ERROR bad command line format", "SERVER_ERROR busy"} {
		_, err := ParseMeta([]byte(line))
		var reply *ReplyError
		assert.ErrorAs(t, err, &reply, line)
	}
}
