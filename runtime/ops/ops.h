// Every differentiable operation.
#pragma once

#include "runtime/ops/conv.h"
#include "runtime/ops/elementwise.h"
#include "runtime/ops/group_norm.h"
#include "runtime/ops/image.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/reduction.h"
#include "runtime/ops/shape.h"
