package pool_test

import "time"

const rest = 10 * time.Millisecond
