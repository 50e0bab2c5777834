// One convolution, grouped: x [N,H,W,C], weight [K,R,S,C/groups], y [N,Ho,Wo,K], all channels last.
//
//   y[n,i,j,k] = sum over r, s, c of weight[k,r,s,c]
//                                    * x[n, i*stride_h + r*dilation_h - top,
//                                           j*stride_w + s*dilation_w - left, g*C/groups + c]
//
// where g = k / (K/groups), without remainder, is the group of filter k, c counts the C/groups
// channels of that group, and pixels outside the image count as zero. The three passes of a layer
// sum over different indices of this one equation.
#pragma once

struct ConvShape {
  int N, H, W, C;          // images, their height, width and channels
  int K, R, S;             // filters, their height and width
  int Ho, Wo;              // height and width of the output
  int stride_h, stride_w;  // pixels from one window to the next
  int top, left;           // rows and columns of padding before the image
  int dilation_h, dilation_w;
  int groups;
  int filled;  // channels of a pixel of x that count; the others lie there, whatever they hold
};
